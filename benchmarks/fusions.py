"""How long each fusion takes, relative to fast normalized fusion: `python -m benchmarks.fusions`."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.side_by_side import Ratio, side_by_side
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector
from mmfuse.model.fusion import FUSIONS
from mmfuse.report.tables import markdown_table


def measure(size: str, side: int, modalities: dict[str, int], rounds: int, train: bool) -> list[Ratio]:
    """Times a forward pass on one image, or forward and backward on two, for each fusion; fast twice, as a check."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = {m: torch.randn(1 + train, n, side, side, device=device) for m, n in modalities.items()}
    images = {m: x.contiguous(memory_format=torch.channels_last) for m, x in images.items()}
    sides: dict[str, Callable[[], object]] = {}
    for name, fusion in {"fast": "fast", "fast again": "fast", **{f: f for f in FUSIONS if f != "fast"}}.items():
        torch.manual_seed(0)
        detector = create_detector(size, modalities, 90, fusion=fusion).to(device).train(train)
        detector = detector.to(memory_format=torch.channels_last)
        sides[name] = partial(_train if train else _infer, detector, images)
    return side_by_side(sides, rounds)


@torch.inference_mode()
def _infer(detector: Detector, images: dict[str, torch.Tensor]) -> None:
    detector(images)


def _train(detector: Detector, images: dict[str, torch.Tensor]) -> None:
    outputs = detector(images)
    (outputs.class_logits.mean() + outputs.box_codes.mean()).backward()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table for inference and one for training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="d0")
    parser.add_argument("--side", type=int, default=512, help="pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    for train in (False, True):
        found = measure(options.size, options.side, {"rgb": 3, "thermal": 1}, options.rounds, train)
        rows = [(r.name, f"{r.milliseconds:.1f}", f"{r.median:.3f}", f"[{r.low:.3f}, {r.high:.3f}]") for r in found]
        header = ("forward and backward" if train else "forward", "ms", "time / fast", "95 % interval")
        print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
