"""effdet, the reference implementation: its detectors, and ours with the same weights."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.effdet_weights import import_effdet
from mmfuse.scaling import PUBLISHED

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # effdet uses torch.jit.script, which torch warns of
    from effdet import DetBenchPredict, DetBenchTrain, EfficientDet, get_efficientdet_config
    from effdet.anchors import AnchorLabeler, Anchors
    from effdet.bench import _batch_detection, _post_process
    from effdet.loss import DetectionLoss

__all__ = [
    "AnchorLabeler", "Anchors", "DetBenchPredict", "DetBenchTrain", "DetectionLoss", "_batch_detection",
    "_post_process",
]  # fmt: skip


def config(size: str, side: int, classes: int) -> Any:
    """Returns effdet's configuration of a published size for images of `side` pixels.

    Raises:
        UserError: the size isn't published.
    """
    if size not in PUBLISHED:
        raise UserError(f"size: {size!r} is not one of effdet's; use one of {', '.join(PUBLISHED)}")
    found = get_efficientdet_config(f"tf_efficientdet_{size}")
    found.image_size, found.num_classes = (side, side), classes
    return found


def pair(size: str, side: int, classes: int) -> tuple[EfficientDet, FusionDetector]:
    """Returns effdet's detector and ours for one modality, "rgb", with the same random weights.

    Biases, edges and statistics are random too, and activations of the size that they have in a trained network.
    """
    torch.manual_seed(0)
    model = EfficientDet(config(size, side, classes), pretrained_backbone=False)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [part.momentum for part in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.6, 1.4)
            norm.bias.normal_(std=0.2)
        for name, value in model.named_parameters():
            if name.endswith("edge_weights"):
                value.uniform_(-0.2, 2.0)
        model.train()(torch.randn(2, 3, side, side))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.get_buffer("running_var").add_(0.01)
    detector = create_detector(size, {"rgb": 3}, classes)
    assert isinstance(detector, FusionDetector)
    import_effdet(detector, model.state_dict())
    return model.eval(), detector.eval()


def rows(maps: list[Tensor], values: int) -> Tensor:
    """Joins maps of effdet's heads, (B, 9 x values, h, w) for each level, to (B, A, values), as ours do."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, values) for x in maps], 1)
