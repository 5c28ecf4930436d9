"""How fast detection is on one GPU, in bf16: `python -m benchmarks.gpu_inference`, which takes less than 10 minutes.

Images lie on the device already, normalised and channels last. Ways of one case are timed in turn. Where effdet is
installed it is one of them, with the same weights, and its outputs are compared before anything is timed. What fails,
differs or has no time left is named in the result. Without a GPU, `--small` runs the same code on the processor.
"""

import argparse
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.results import RESULTS, Row, described, table, write
from benchmarks.side_by_side import device, side_by_side
from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.detector import FusionDetector
from mmfuse.model.postprocess import DEFAULT, decode_padded
from mmfuse.scaling import PUBLISHED

CLASSES = 90
IDEAL_BYTES = 190e6
"""Traffic of a D0 on one image of 512 x 512 in bf16, if every layer reads its input and writes its output once."""

Run = Callable[[], Any]
Maps = tuple[Tensor, Tensor]
"""Class logits (B, A, K) and box codes (B, A, 4)."""


@dataclass(frozen=True)
class Case:
    """What is timed: `count` modalities, images of `side` pixels, and whether compiled ways are tried too."""

    size: str
    count: int
    batch: int
    side: int
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.size}, {self.count} modalit{'y' if self.count == 1 else 'ies'}, batch {self.batch}"


@dataclass
class Notes:
    """What a result lacks, and when no case may begin any more."""

    deadline: float
    lines: list[str] = field(default_factory=list)

    def late(self, what: object) -> bool:
        """Returns whether time is up, and notes what is left out for it."""
        if late := time.monotonic() > self.deadline:
            self.lines.append(f"{what}: left out, no time was left")
        return late

    def attempt(self, what: str, make: Callable[[], Run]) -> Run | None:
        """Returns what `make` gives once it has run, None where either fails, with a note."""
        try:
            run = make()
            run()
        except Exception as error:  # a way that this machine can't go
            first = str(error).strip().partition("\n")[0][:160]
            self.lines.append(f"{what}: left out, {type(error).__name__}: {first}")
            return None
        return run


def cases() -> list[Case]:
    """Returns the cases, those first that matter most, so that time runs out on the others."""
    first = [Case("d0", count, batch, 512, True) for count in (1, 2) for batch in (1, 128)]
    larger = [("d0", 32), *((f"d{n}", batch) for n in range(1, 5) for batch in (1, 16))]
    return first + [Case(s, count, batch, PUBLISHED[s].resolution) for s, batch in larger for count in (1, 2)]


SMALL = [Case("d0", 1, 1, 128), Case("d-4", 2, 2, 128)]


def measure(small: bool = False, minutes: float = 7.0) -> tuple[list[Row], list[str]]:
    """Times all cases; none begins after `minutes`. Returns the rows, and notes on what is left out."""
    notes = Notes(time.monotonic() + 60 * minutes)
    bandwidth = None if small else copy_bandwidth()
    rows = [] if bandwidth is None else [Row("bandwidth", "copy", bandwidth / 1e9, "GB/s")]
    with tqdm(SMALL if small else cases(), desc="cases", unit="case") as bar:
        for case in bar:
            bar.set_postfix_str(str(case))
            if not notes.late(case):
                rows += time_case(case, notes, rounds=1 if small else 7, bandwidth=bandwidth)
    return rows, notes.lines


@torch.no_grad()
def time_case(case: Case, notes: Notes, rounds: int, bandwidth: float | None) -> list[Row]:
    """Times all ways of one case, a row for each, with kernels and the share of the bandwidth on CUDA."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    sides = ways(case, notes)
    if not sides:
        return []
    passes = 1 if case.batch == 1 or bandwidth is None else 10
    repeated = {name: _repeat(run, passes) for name, run in sides.items()}
    rows = []
    for found in side_by_side(repeated, rounds if bandwidth is None or passes > 1 else 5 * rounds, warm_up=1):
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


def _repeat(run: Run, times: int) -> Run:
    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated


def ways(case: Case, notes: Notes) -> dict[str, Run]:
    """Returns every way to run a case that works here, by name; the outputs of all agree."""
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
    fused = detector.fuse().to(dtype)
    plain = detector.to(dtype)
    grid = fused.anchors((case.side, case.side))

    def network(model: nn.Module) -> Maps:
        outputs = model(images)
        return outputs.class_logits, outputs.box_codes

    def decoded(maps: Maps) -> Any:
        return decode_padded(*maps, grid, (case.side, case.side), DEFAULT)

    networks: dict[str, Callable[[], Maps]] = {}
    if reference is not None:
        from benchmarks.reference import rows

        model = reference.to(dtype)
        x = next(iter(images.values()))

        def joined() -> Maps:
            classes, codes = model(x)
            return rows(classes, CLASSES), rows(codes, 4)

        networks["effdet"] = joined
    networks["eager"] = lambda: network(plain)
    networks["fused"] = lambda: network(fused)
    if graphs and case.count > 1:
        networks["fused, branches on streams"] = lambda: branched(fused, images)
    if case.compiled:
        compiled = torch.compile(network, fullgraph=True, dynamic=False)
        networks["compiled"] = lambda: compiled(fused)
    decoders = {"eager": decoded, "fused": decoded}
    if case.compiled:
        decoders["compiled"] = torch.compile(decoded, fullgraph=True, dynamic=False)
    pool = torch.cuda.graph_pool_handle() if graphs else None
    sides: dict[str, Run] = {}
    first: list[Tensor] = []
    for name, run in networks.items():
        if name == "compiled" and notes.late(f"{case}, {name}"):
            continue

        def compared(name: str = name, run: Callable[[], Maps] = run) -> None:
            first.append(run()[0].float())
            check(name, first[-1], first[0])

        if notes.attempt(f"{case}, {name}", lambda run=compared: run) is None:  # type: ignore[misc]
            continue
        todo = {name: run}
        if name in decoders:
            todo[f"{name}, with NMS"] = lambda run=run, decoder=decoders[name]: decoder(run())  # type: ignore[misc]
        for title, way in todo.items():
            chosen = {title: lambda way=way: way}
            if graphs:
                chosen[f"{title}, graph"] = lambda way=way: captured(way, pool)
            for label, make in chosen.items():
                if (side := notes.attempt(f"{case}, {label}", make)) is not None:
                    sides[label] = side
    return sides


def models(size: str, side: int, count: int, notes: Notes) -> tuple[nn.Module | None, FusionDetector]:
    """Returns effdet's detector, if it is installed and has such a one, and ours for `count` modalities.

    Both are on the device, channels last, with the same weights.
    """
    reference: nn.Module | None = None
    detector: nn.Module | None = None
    if count == 1 and size in PUBLISHED:
        try:
            from benchmarks.reference import pair
        except ImportError as error:
            if (line := f"effdet: left out, {error}") not in notes.lines:
                notes.lines.append(line)
        else:
            with torch.enable_grad():
                reference, detector = pair(size, side, CLASSES)
            reference = reference.to(device()).to(memory_format=torch.channels_last)
    if detector is None:
        torch.manual_seed(0)
        detector = create_detector(size, {f"sensor_{n}": 3 for n in range(count)}, CLASSES).eval()
    assert isinstance(detector, FusionDetector)
    return reference, detector.to(device()).to(memory_format=torch.channels_last)


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
    size, presence = detector.checked(images, None)
    streams = {m: torch.cuda.Stream() for m in images}
    for modality, x in images.items():
        streams[modality].wait_stream(main)
        with torch.cuda.stream(streams[modality]):
            features.update(detector.features({modality: x}, presence))
    for stream in streams.values():
        main.wait_stream(stream)
    outputs = detector.merge(features, size, presence)
    return outputs.class_logits, outputs.box_codes


def captured(run: Run, pool: Any) -> Run:
    """Returns the replay of a CUDA graph of what `run` does; graphs of one memory `pool` write over each other's."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        kept = run()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def kernels(run: Run) -> tuple[int, float]:
    """Returns how many kernels, copies and fills a run starts, and the seconds in which the device is busy."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as listener:
        run()
        torch.cuda.synchronize()
    found = [e.time_range for e in listener.events() or [] if e.device_type == DeviceType.CUDA]
    return len(found), covered((t.start, t.end) for t in found) / 1e6


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def copy_bandwidth(size: int = 2**30) -> float:
    """Returns the bytes a second that a copy of `size` bytes reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    (found,) = side_by_side({"copy": lambda: target.copy_(source)}, 15, warm_up=3)
    return 2 * size / (found.milliseconds / 1000)


def save(
    benchmark: str, options: Mapping[str, Any], rows: Sequence[Row], notes: Sequence[str], folder: Path
) -> dict[str, Any]:
    """Writes `folder`/`benchmark`_<device>.json and returns it."""
    given = [f"--{name} {value}" if not isinstance(value, bool) else f"--{name}" for name, value in options.items()]
    result = described(benchmark, " ".join([f"python -m benchmarks.{benchmark}", *given]), rows)
    result["versions"] = {"python": platform.python_version()} | result["versions"]
    result["notes"] = list(notes)
    where = result["hardware"]
    name = re.sub(r"[^a-z0-9]+", "_", (where["device"] or where["cpu"]).lower()).strip("_")
    write(result, folder / f"{benchmark}_{name}.json")
    return result


def report(result: Mapping[str, Any]) -> str:
    """Returns the table of a result and its notes."""
    return "\n".join([table(result), *result["notes"]])


def settle(small: bool) -> None:
    """Chooses what a GPU does best; refuses the whole benchmark without one.

    Raises:
        UserError: there is no CUDA device, and not `small`.
    """
    if not small and not torch.cuda.is_available():
        raise UserError("device: no CUDA device was found; run it on one, or give --small")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> dict[str, Any]:
    """Adds the options of both GPU benchmarks; returns `results`, and all that differ from their defaults."""
    parser.add_argument("--small", action="store_true", help="seconds, on any device, to see that it runs")
    parser.add_argument("--minutes", type=float, default=7.0, help="nothing begins after these (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = vars(parser.parse_args(arguments))
    return {k: v for k, v in options.items() if k == "results" or v != parser.get_default(k)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table and writes the result."""
    options = parse(argparse.ArgumentParser("python -m benchmarks.gpu_inference", description=__doc__), arguments)
    folder = options.pop("results")
    settle("small" in options)
    rows, notes = measure(**options)
    print(report(save("gpu_inference", options, rows, notes, folder)))


if __name__ == "__main__":
    main()
