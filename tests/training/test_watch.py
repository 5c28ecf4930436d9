import pytest
import torch

from mmfuse.errors import UserError
from mmfuse.training.watch import Watch


def test_figures_that_are_still_on_their_way_are_not_waited_for(copies):
    watch = Watch(0.1)
    for step, loss in enumerate((1.0, torch.nan, torch.inf)):
        watch.add(step, [10 + step], torch.tensor(loss), torch.tensor(1.0))
    copies[0].done = copies[2].done = True
    watch.add(3, [13], torch.tensor(1.0), torch.tensor(1.0))
    copies[1].done = True
    with pytest.raises(UserError, match=r"^step 1: the loss is nan on images \[11\]; lower train.lr \(0.1\) or look"):
        watch.add(4, [14], torch.tensor(1.0), torch.tensor(1.0))
    assert not any(copy.waited_for for copy in copies)


def test_the_last_figures_are_waited_for(copies):
    watch = Watch(0.1)
    watch.add(0, [1], torch.tensor(1.0), torch.tensor(1.0))
    watch.finish()
    watch.add(1, [2], torch.tensor(1.0), torch.tensor(torch.inf))
    with pytest.raises(UserError, match=r"^step 1: the norm of the gradient is inf on images \[2\]; lower"):
        watch.finish()
    assert all(copy.waited_for for copy in copies)
