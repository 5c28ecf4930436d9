"""effdet's models with random weights, and detectors that hold the same ones."""

import torch
from effdet import EfficientDet, get_efficientdet_config
from effdet.anchors import AnchorLabeler, Anchors
from effdet.bench import _batch_detection, _post_process
from effdet.config.model_config import efficientdet_model_param_dict
from effdet.loss import DetectionLoss
from torch import Tensor, nn

from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.effdet_weights import import_effdet

__all__ = [
    "AnchorLabeler",
    "Anchors",
    "DetectionLoss",
    "EfficientDet",
    "_batch_detection",
    "_post_process",
    "efficientdet_model_param_dict",
    "get_efficientdet_config",
    "options",
    "ours",
    "reference",
    "rows",
]


def options(name: str) -> dict[str, str]:
    """What `create_detector` must be told for the structure of effdet's model of that name."""
    size = name.rpartition("_")[2]
    flavour = "tf" if name.startswith("tf_") else "symmetric"
    pyramid = "quad_fpn" if size.startswith("q") else "bifpn"
    return {"size": size.replace("q", "d"), "flavour": flavour, "pyramid": pyramid}


def reference(name: str, height: int, width: int, classes: int = 90, **changes: object) -> EfficientDet:
    """effdet's model with weights and batch norm statistics that are random, but keep activations near 1."""
    config = get_efficientdet_config(name)
    config.image_size = (height, width)
    config.num_classes = classes
    config.update(changes)
    model = EfficientDet(config, pretrained_backbone=False)
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for part in norms:
            part.momentum = 1.0
            nn.init.uniform_(part.weight, 0.6, 1.4)
            nn.init.normal_(part.bias, std=0.2)
        for key, value in model.named_parameters():
            if key.endswith("edge_weights"):
                nn.init.uniform_(value, -0.2, 2.0)
            elif key.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.1)
        model.train()(torch.randn(2, 3, height, width))
        for part in norms:
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.add_(part.running_var.sqrt() * torch.randn_like(part.running_mean) * 0.1)
            part.running_var.mul_(torch.empty_like(part.running_var).uniform_(0.8, 1.6)).add_(0.01)
    return model.eval()


def ours(name: str, model: EfficientDet) -> FusionDetector:
    detector = create_detector(modalities={"rgb": 3}, num_classes=model.config.num_classes, **options(name))
    import_effdet(detector, model.state_dict())
    return detector.eval()


def rows(levels: list[Tensor], values: int) -> Tensor:
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, values) for x in levels], 1)
