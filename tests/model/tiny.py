"""Tiny detectors of one to three modalities, and images for them."""

import torch

from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.scaling import Size

SIZES = {
    "tiny": Size("tiny", 128, "tinynet_e", width=8, pyramid_depth=1, head_depth=1),
    "small": Size("small", 128, "tinynet_e", width=16, pyramid_depth=1, head_depth=1),
    "sum": Size("sum", 128, "tinynet_e", width=8, pyramid_depth=1, head_depth=1, fusion="sum"),
    "deep": Size("deep", 256, "tinynet_e", width=8, pyramid_depth=1, head_depth=1, levels=(3, 4, 5, 6, 7, 8)),
}
BACKBONES = {"a": "test_resnet", "b": "mobilenetv3_small_050", "c": "test_convnext"}
CHANNELS = {"a": 1, "b": 3, "c": 4}


def make(modalities="ab", size="tiny", **options):
    torch.manual_seed(0)
    own = {m: BACKBONES[m] for m in modalities}
    options = {
        "backbone": "test_resnet" if options.get("placement") == "channels" else own,
        "num_classes": 3,
    } | options
    detector = create_detector(size, {m: CHANNELS[m] for m in modalities}, **options)
    for part in detector.modules():
        if isinstance(part, FusionDetector):  # spread outputs, so that detections differ
            part.class_head.predict.pointwise.weight.data *= 5
    return detector.eval()


def inputs(modalities="ab", batch=2, height=128, width=128):
    generator = torch.Generator().manual_seed(5)
    return {m: torch.randn(batch, CHANNELS[m], height, width, generator=generator) for m in modalities}


def raw(modalities="ab", batch=1, height=128, width=128, dtype=torch.uint8):
    generator = torch.Generator().manual_seed(6)
    return {
        m: torch.randint(0, 256, (batch, CHANNELS[m], height, width), generator=generator).to(dtype) for m in modalities
    }
