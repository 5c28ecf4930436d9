"""How long each fusion takes, relative to fast normalized fusion, for inference and in training."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.results import Row, time_rows
from benchmarks.side_by_side import Ratio, device, side_by_side
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector
from mmfuse.model.fusion import FUSIONS


def measure(rounds: int = 15, size: str = "d0", side: int = 512) -> list[Row]:
    """Times a forward pass on one image, then forward and backward on two, for RGB and thermal."""
    rows = []
    for what, train in {"forward": False, "forward and backward": True}.items():
        ratios = compare(size, side, {"rgb": 3, "thermal": 1}, rounds, train)
        rows += time_rows(ratios, measure=what)
    return rows


def compare(size: str, side: int, modalities: dict[str, int], rounds: int, train: bool) -> list[Ratio]:
    """Times a forward pass on one image, or forward and backward on two, for each fusion; fast twice, as a check."""
    images = {m: torch.randn(1 + train, n, side, side, device=device()) for m, n in modalities.items()}
    images = {m: x.contiguous(memory_format=torch.channels_last) for m, x in images.items()}
    sides: dict[str, Callable[[], object]] = {}
    for name, fusion in {"fast": "fast", "fast again": "fast", **{f: f for f in FUSIONS if f != "fast"}}.items():
        torch.manual_seed(0)
        detector = create_detector(size, modalities, 90, fusion=fusion).to(device()).train(train)
        detector = detector.to(memory_format=torch.channels_last)
        sides[name] = partial(_train if train else _infer, detector, images)
    return side_by_side(sides, rounds)


@torch.inference_mode()
def _infer(detector: Detector, images: dict[str, torch.Tensor]) -> None:
    detector(images)


def _train(detector: Detector, images: dict[str, torch.Tensor]) -> None:
    outputs = detector(images)
    (outputs.class_logits.mean() + outputs.box_codes.mean()).backward()
