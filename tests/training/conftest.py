import pytest

from mmfuse.training import loop, watch
from mmfuse.training.loop import train


@pytest.fixture
def train_one_epoch(monkeypatch):
    """Trains a recipe into a folder and is interrupted when the second epoch begins."""

    def run(recipe, folder):
        real = loop.Training._train_epoch

        def interrupted(self, epoch, bar):
            if epoch == 1:
                raise KeyboardInterrupt
            return real(self, epoch, bar)

        with monkeypatch.context() as patch:
            patch.setattr(loop.Training, "_train_epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, folder=folder)

    return run


@pytest.fixture
def train_until(monkeypatch):
    """Trains a recipe into a folder and is interrupted when a step, counted from 0, or a validation begins."""

    def run(recipe, assignments, folder, *, step=None, validation=None):
        take, validate = loop.Training._step, loop.Training._validate

        def steps(self, number, batch):
            if number == step:
                raise KeyboardInterrupt
            return take(self, number, batch)

        def validates(self, done):
            if done == validation:
                raise KeyboardInterrupt
            return validate(self, done)

        with monkeypatch.context() as patch:
            patch.setattr(loop.Training, "_step", steps)
            patch.setattr(loop.Training, "_validate", validates)
            with pytest.raises(KeyboardInterrupt):
                train(recipe, assignments, folder=folder)

    return run


class _Copied:
    """A copy from a device that is done once `done` is set, or waited for."""

    def __init__(self):
        self.done, self.waited_for = False, False

    def query(self):
        return self.done

    def synchronize(self):
        self.done = self.waited_for = True


@pytest.fixture
def copies(monkeypatch):
    """The copies that were begun, each of which takes as long as the test says."""
    begun = []
    monkeypatch.setattr(watch, "_copied", lambda device: begun.append(_Copied()) or begun[-1])
    return begun
