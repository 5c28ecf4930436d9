"""How the cost of detection grows with modalities, pixels and objects, as ratios of our own times.

Detectors of up to three modalities of three channels each, one image, for inference: eager and with norms folded.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.results import Bar, Row
from benchmarks.side_by_side import alternate, device, median
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector, FusionDetector, Outputs
from mmfuse.model.heads import PER_PLACE
from mmfuse.model.postprocess import Selection

MODALITIES = ("rgb", "thermal", "depth")
SLACK = 0.03
OBJECTS = (1, 10, 100, 500)
SIDES = (256, 512, 768, 1024)
OTHER, OBJECT = -6.0, 4.0
"""Logits of all else and of objects."""


def measure(
    rounds: int = 11, size: str = "d0", side: int = 512, classes: int = 90, largest: int = SIDES[-1]
) -> Iterator[Row]:
    """Measures growth with modalities at `side` pixels, with pixels up to `largest`, and with objects."""
    for form, detectors in {
        "eager": _detectors(size, classes),
        "folded": _detectors(size, classes, folded=True),
    }.items():
        yield from modalities(form, detectors, side, rounds)
        yield from pixels(form, detectors[0], [x for x in SIDES if x <= largest], rounds)
        yield from objects(form, detectors[0], side, rounds)


def _detectors(size: str, classes: int, *, folded: bool = False) -> list[FusionDetector]:
    """Returns the detectors of the first modality, of the first two, and so on."""
    found = []
    for count in range(1, len(MODALITIES) + 1):
        torch.manual_seed(0)
        detector = create_detector(size, dict.fromkeys(MODALITIES[:count], 3), classes).eval()
        assert isinstance(detector, FusionDetector)
        found.append((detector.folded() if folded else detector).to(device()).to(memory_format=torch.channels_last))
    return found


def _images(side: int, *modalities: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        m: torch.randn(1, 3, side, side, generator=generator).to(device(), memory_format=torch.channels_last)
        for m in modalities
    }


def modalities(form: str, detectors: list[FusionDetector], side: int, rounds: int) -> list[Row]:
    """Compares one, two and three modalities, and two of which one is missing.

    A backbone's share s of the time of a single detector says what each may cost: two modalities (1 + s) / 2 of two
    single detectors, one of two missing 1 / (1 + s) of both, each with 3 % more, and a third 1.05 of a backbone.
    """
    one, two, three = detectors
    images = _images(side, *MODALITIES)
    first, second = ({m: images[m]} for m in MODALITIES[:2])
    backbone = one.backbones[MODALITIES[0]]
    sides: dict[str, Callable[[], object]] = {
        "one": lambda: one(first),
        "backbone": lambda: backbone(first[MODALITIES[0]]),
        "two single": lambda: (one(first), one({MODALITIES[0]: second[MODALITIES[1]]})),
        "two": lambda: two(first | second),
        "three": lambda: three(images),
        "one of two": lambda: two(first),
    }
    times = alternate({name: torch.inference_mode()(run) for name, run in sides.items()}, rounds)
    share = median(times["backbone"] / times["one"])[0]
    ratios = {
        "backbone / one modality": (times["backbone"], times["one"], None),
        "two modalities / two single detectors": (times["two"], times["two single"], Bar((1 + share) / 2 + SLACK)),
        "third modality / backbone": (times["three"] - times["two"], times["backbone"], Bar(1.05)),
        "one of two missing / both": (times["one of two"], times["two"], Bar(1 / (1 + share) + SLACK)),
    }
    return [
        Row(form, name, 1000 * float(np.median(own)), "ms", *median(own / other), bar)
        for name, (own, other, bar) in ratios.items()
    ]


def pixels(form: str, detector: FusionDetector, sides: list[int], rounds: int) -> list[Row]:
    """Fits the exponent of the time over the number of pixels."""
    ways = {str(side): partial(_forward, detector, _images(side, MODALITIES[0])) for side in sides}
    times = alternate(ways, rounds)
    slopes = np.polyfit(2 * np.log(sides), np.log(np.stack(list(times.values()))), 1)[0]
    name = f"exponent of time over pixels, {sides[0]} to {sides[-1]} px"
    return [Row(form, name, None, "", *median(slopes), Bar(1.05))]


@torch.inference_mode()
def _forward(network: nn.Module, images: dict[str, Tensor]) -> Outputs:
    outputs: Outputs = network(images)
    return outputs


def objects(form: str, detector: FusionDetector, side: int, rounds: int) -> list[Row]:
    """Compares detection on outputs with few and with many objects: forward, then decoding of the given outputs.

    Raises:
        AssertionError: other numbers of objects are found than are there.
    """
    images = _images(side, MODALITIES[0])
    selection = Selection(threshold=0.5, max_detections=max(OBJECTS))
    given = {count: outputs_of(detector, side, count) for count in OBJECTS}
    for count, outputs in given.items():
        found = len(detector.decode(outputs, selection=selection)[0])
        assert found == count, f"{found} detections on outputs with {count} objects"

    @torch.inference_mode()
    def detect(outputs: Outputs) -> None:
        detector(images)
        detector.decode(outputs, selection=selection)

    times = alternate({str(count): partial(detect, outputs) for count, outputs in given.items()}, rounds)
    first = times[str(OBJECTS[0])]
    return [
        Row(
            form,
            f"detect, {name} objects / {OBJECTS[0]}",
            1000 * float(np.median(own)),
            "ms",
            *median(own / first),
            bar,
        )
        for (name, own), bar in zip(times.items(), [None, *[Bar(1.1)] * (len(OBJECTS) - 1)], strict=True)
    ]


def outputs_of(detector: Detector, side: int, objects: int) -> Outputs:
    """Returns outputs that say that there are so many objects, of one anchor each.

    Anchors of a class are two cells of the finest level apart, so that none suppresses another.
    """
    size, classes = (side, side), len(detector.classes)
    count = len(detector.anchors(size))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, count, classes, generator=generator) * 0.1 + OTHER
    cells = side // 2 ** detector.levels[0]
    even = torch.arange(0, cells, 2)
    places = ((even[:, None] * cells + even) * PER_PLACE).flatten()
    number = torch.arange(objects)
    logits[0, places[number % len(places)], number // len(places)] = OBJECT
    return Outputs(logits.to(device()), torch.zeros(1, count, 4, device=device()), size)
