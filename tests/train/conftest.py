import pytest

from mmfuse.train import loop
from mmfuse.train.loop import train


@pytest.fixture
def train_one_epoch(monkeypatch):
    """Trains a recipe into a folder and is interrupted when the second epoch begins."""

    def run(recipe, folder):
        real = loop._Training._train_epoch

        def interrupted(self, epoch, bar):
            if epoch == 1:
                raise KeyboardInterrupt
            return real(self, epoch, bar)

        with monkeypatch.context() as patch:
            patch.setattr(loop._Training, "_train_epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, folder=folder)

    return run
