"""How fast detection is on one GPU, in bf16; takes less than 10 minutes.

The ways of one case are timed in turn. Cases go from small sizes to large ones, and those that take minutes to compile
come when most others are done. See `benchmarks.gpu` for what the sides are; `--small` needs no GPU.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.gpu import CLASSES, Notes, Run, captured, kernels, models, repeated, settle
from benchmarks.results import Row
from benchmarks.side_by_side import alternate, device, side_by_side
from mmfuse.errors import UserError
from mmfuse.model.detector import FusionDetector
from mmfuse.scaling import PUBLISHED

IDEAL_BYTES = 190e6
"""Traffic of a D0 on one image of 512 x 512 in bf16, if every layer reads its input and writes its output once."""

Maps = tuple[Tensor, Tensor]
"""Class logits (B, A, K) and box codes (B, A, 4)."""


@dataclass(frozen=True)
class Case:
    """What is timed: `count` modalities and images of `side` pixels; the compiled ways, or the others.

    The first way of all is timed beside the compiled ones, as what they are compared with.
    """

    size: str
    count: int
    batch: int
    side: int
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.size}, {self.count} modalit{'y' if self.count == 1 else 'ies'}, batch {self.batch}"


def cases() -> list[Case]:
    """Returns the cases, those first that matter most, so that time runs out on the others."""
    first = [Case("d0", count, batch, 512) for count in (1, 2) for batch in (1, 32, 128)]
    compiled = [Case("d0", count, batch, 512, True) for count in (1, 2) for batch in (1, 128)]
    larger = {
        count: [Case(f"d{n}", count, batch, PUBLISHED[f"d{n}"].resolution) for n in range(1, 5) for batch in (1, 16)]
        for count in (1, 2)
    }
    return [*first, *larger[1], *compiled, *larger[2]]


SMALL = [Case("d0", 1, 1, 128), Case("d-4", 2, 2, 128)]


def measure(small: bool = False, minutes: float = 7.0, only: str = "") -> Iterator[Row | str]:
    """Times the cases whose names begin with `only`; none begins after `minutes`.

    Yields rows as they are found, and notes on what is left out.

    Raises:
        UserError: no case has such a name, or there is no CUDA device, and not `small`.
    """
    chosen = [case for case in (SMALL if small else cases()) if str(case).startswith(only)]
    if not chosen:
        raise UserError(f"only: {only!r} begins no case; use the beginning of one, such as 'd0, 1 modality'")
    settle(small)
    notes = Notes(minutes)
    bandwidth = None if small else copy_bandwidth()
    if bandwidth is not None:
        yield Row("bandwidth", "copy", bandwidth / 1e9, "GB/s")
    with tqdm(chosen, desc="cases", unit="case") as bar:
        for case in bar:
            bar.set_postfix_str(str(case))
            if not notes.late(f"{case}, compiled" if case.compiled else case):
                yield from time_case(case, notes, rounds=1 if small else 7, bandwidth=bandwidth)
            yield from notes.taken()


@torch.no_grad()
def time_case(case: Case, notes: Notes, rounds: int, bandwidth: float | None) -> list[Row]:
    """Times the ways of one case, a row for each, with kernels and the share of the bandwidth on CUDA."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    sides = ways(case, notes)
    if not sides:
        return []
    passes = 1
    if case.batch > 1 and bandwidth is not None:
        first = next(iter(sides.values()))
        once = alternate({"first": first}, rounds=1)["first"][0]
        passes = max(1, min(10, round(0.2 / once)))  # of small work one pass alone would end in waiting
    again = {name: repeated(run, passes) for name, run in sides.items()}
    if case.batch == 1 and bandwidth is not None:
        rounds *= 3
    rows = []
    for found in side_by_side(again, rounds, warm_up=1):
        milliseconds = found.milliseconds / passes
        latency = case.batch == 1
        value, unit = (milliseconds, "ms") if latency else (1000 * case.batch / milliseconds, "img/s")
        measure = f"{case}: {'latency' if latency else 'throughput'}"
        rows.append(Row(measure, found.name, value, unit, found.median, found.low, found.high))
        if bandwidth is not None:
            number, seconds = kernels(sides[found.name])
            rows.append(Row(f"{case}: kernels", found.name, number, "kernels"))
            rows.append(Row(f"{case}: busy", found.name, 1000 * seconds, "ms"))
            if case.size == "d0" and case.count == 1 and case.side == 512:
                bound = bandwidth / IDEAL_BYTES
                share = 1000 * case.batch / milliseconds / bound
                rows.append(Row(f"{case}: share of {bound:.0f} img/s by bandwidth", found.name, 100 * share, "%"))
    return rows


def ways(case: Case, notes: Notes) -> dict[str, Run]:
    """Returns every way to run a case that works here, by name: networks, whose outputs agree, and whole detection."""
    graphs = device().type == "cuda"
    dtype = torch.bfloat16 if graphs else torch.float32
    reference, detector = models(case.size, case.side, case.count, notes)
    generator = torch.Generator().manual_seed(1)
    images = {
        m: torch.randn(case.batch, 3, case.side, case.side, generator=generator)
        .to(device(), dtype)
        .contiguous(memory_format=torch.channels_last)
        for m in detector.modalities
    }
    whole = detection(case, detector)
    folded = detector.folded().to(dtype)
    plain = copy.deepcopy(detector).to(dtype)

    def network(model: nn.Module) -> Maps:
        outputs = model(images)
        return outputs.class_logits, outputs.box_codes

    networks: dict[str, Callable[[], Maps]] = {}
    if reference is not None:
        from benchmarks.reference import DetBenchPredict, rows

        model = reference.to(dtype)
        x = next(iter(images.values()))
        bench = DetBenchPredict(model).to(device())

        def joined() -> Maps:
            classes, codes = model(x)
            return rows(classes, CLASSES), rows(codes, 4)

        networks["effdet"] = joined
        whole = {"effdet, DetBenchPredict": lambda: lambda: bench(x), **whole}
    networks["eager"] = lambda: network(plain)
    networks["folded"] = lambda: network(folded)
    if graphs and case.count > 1:
        networks["folded, branches on streams"] = lambda: branched(folded, images)
    if case.compiled:
        compiled = torch.compile(network, fullgraph=True, dynamic=False)
        baseline = next(iter(networks))
        networks = {baseline: networks[baseline], "compiled": lambda: compiled(folded)}
    pool = torch.cuda.graph_pool_handle() if graphs else None
    sides: dict[str, Run] = {}
    first: list[Tensor] = []
    for name, run in networks.items():

        def compared(name: str = name, run: Callable[[], Maps] = run) -> None:
            first.append(run()[0].float())
            check(name, first[-1], first[0])

        if notes.attempt(f"{case}, {name}", lambda run=compared: run) is None:  # type: ignore[misc]
            continue
        chosen: dict[str, Callable[[], Run]] = {name: lambda run=run: run}  # type: ignore[misc]
        if graphs:
            chosen[f"{name}, graph"] = lambda run=run: captured(run, pool)  # type: ignore[misc]
        for label, make in chosen.items():
            if (side := notes.attempt(f"{case}, {label}", make)) is not None:
                sides[label] = side
    for label, make in whole.items():
        if (side := notes.attempt(f"{case}, {label}", make)) is not None:
            sides[label] = side
    return sides


def detection(case: Case, detector: FusionDetector) -> dict[str, Callable[[], Run]]:
    """Returns what makes each way from raw images on the device to detections, by name: `detect` as people call it."""
    raw = {
        m: torch.randint(0, 256, (case.batch, 3, case.side, case.side)).to(torch.uint8).to(device())
        for m in detector.modalities
    }
    fewer = dict(list(raw.items())[:1])

    def fast(backend: Literal["graph", "compile", "eager"], images: Mapping[str, Tensor] = raw) -> Run:
        made = detector.fast((case.side, case.side), case.batch, tuple(images), backend=backend)
        return lambda: made.detect(images)

    if case.compiled:
        return {"detect, fast, compile": lambda: fast("compile")}
    folded = detector.folded()
    found: dict[str, Callable[[], Run]] = {
        "detect": lambda: lambda: detector.detect(raw),
        "detect, folded": lambda: lambda: folded.detect(raw),
        "detect, fast": lambda: fast("graph" if device().type == "cuda" else "eager"),
    }
    if case.count > 1:
        found["detect, fast, one sensor alone"] = lambda: fast("graph" if device().type == "cuda" else "eager", fewer)
    return found


def check(name: str, found: Tensor, expected: Tensor) -> None:
    """Compares logits with those of the first way.

    Raises:
        AssertionError: they are further apart than bf16 explains.
    """
    distance = float((found - expected).norm() / expected.norm())
    assert distance < 0.05, f"{name}: logits are {distance:.3f} of their norm away"


def branched(detector: FusionDetector, images: Mapping[str, Tensor]) -> Maps:
    """Runs the backbone of each modality on a stream of its own."""
    main, features = torch.cuda.current_stream(), {}
    size, presence = detector.checked(images, {})
    streams = {m: torch.cuda.Stream() for m in images}
    for modality, x in images.items():
        streams[modality].wait_stream(main)
        with torch.cuda.stream(streams[modality]):
            features.update(detector.features({modality: x}, presence))
    for stream in streams.values():
        main.wait_stream(stream)
    outputs = detector.merge(features, size, presence)
    return outputs.class_logits, outputs.box_codes


def copy_bandwidth(size: int = 2**30) -> float:
    """Returns the bytes a second that a copy of `size` bytes reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    (found,) = side_by_side({"copy": lambda: target.copy_(source)}, 15, warm_up=3)
    return 2 * size / (found.milliseconds / 1000)
