import pytest
import torch
from timm.layers import SyncBatchNormAct
from torch import nn

from mmfuse.model.build import create_detector
from mmfuse.training import distributed
from mmfuse.training.distributed import World


def test_one_process_trains_the_model_itself():
    model = nn.Conv2d(1, 1, 1)
    assert World(0, 1, torch.device("cpu")).wrap(model) is model


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_processes_share_gradients_and_on_cuda_statistics_without_losing_activations(device, monkeypatch):
    wrapped = []
    monkeypatch.setattr(distributed, "DistributedDataParallel", lambda model: wrapped.append(model) or model)
    torch.manual_seed(0)
    detector = create_detector("d-2", {"rgb": 3}, 2).eval()
    images = {"rgb": torch.randn(1, 3, 128, 128)}
    with torch.no_grad():
        before = detector(images)
        model = World(0, 2, torch.device(device)).wrap(detector)
        after = model(images)
    assert wrapped == [model]
    torch.testing.assert_close(after.class_logits, before.class_logits)
    torch.testing.assert_close(after.box_codes, before.box_codes)
    kinds = {type(part) for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
    assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds) == (device == "cuda")
    assert (SyncBatchNormAct in kinds) == (device == "cuda")
