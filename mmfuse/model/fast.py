"""Detection for use: a snapshot of a detector that answers each kind of batch by one CUDA graph."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.detector import Detector, Finder
from mmfuse.model.doubt import Doubting, Judgement, broken_sensors, check_doubting
from mmfuse.model.kernels import kernels_run
from mmfuse.model.postprocess import DEFAULT, Selection
from mmfuse.model.presence import Presence
from mmfuse.sample import Detections, to_device

Backend = Literal["auto", "graph", "compile", "eager"]

MOST = 16
"""Graphs that are kept; the one used longest ago goes."""

WARM_UP = 3
NEAR = 0.02
"""How far the scores of a graph may be from those of the same network run eagerly."""

_log = logging.getLogger(__name__)


class FastDetector(Finder):
    """What `Detector.fast` makes of a detector as it is now: it finds the same objects, sooner, and can't be trained.

    Norms are folded into convolutions, and pixels lie channels last. On CUDA, by default, the network computes in
    bfloat16, and all from raw images to detections (encoding, judging of sensors, network, selection) is one CUDA graph
    for each kind of batch: the sensors that its images have, their types, and what is asked for. That of `sensors`,
    all if None, for up to `batch` images of `size` (H, W), the detector's own if None, is made at once and compared
    with the network run eagerly; others on their first use, which takes seconds and is logged. Fewer images are padded,
    more are taken `batch` at a time, images of another size run eagerly. What is found lies on the host. One thread may
    ask at a time.

    `backend` "graph", the default on CUDA, captures the network as it is, in seconds; "compile" has it compiled first,
    in minutes, which PyTorch keeps between processes; "eager", the default elsewhere, captures nothing. `dtype` is that
    of the network: bfloat16 on CUDA, float32 elsewhere if "auto".

    Raises:
        UserError: an unknown sensor, backend, or type, a size that doesn't fit, no CUDA for a graph, or a detector that
            can't be captured, or answers otherwise once it is.
    """

    def __init__(
        self,
        detector: Detector,
        size: tuple[int, int] | None = None,
        batch: int = 1,
        sensors: Collection[str] | None = None,
        dtype: torch.dtype | Literal["auto"] = "auto",
        backend: Backend = "auto",
    ) -> None:
        on_cuda = detector.device.type == "cuda"
        self.backend = _backend(backend, on_cuda)
        if dtype == "auto":
            dtype = torch.bfloat16 if on_cuda else torch.float32
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise UserError(f"dtype: {dtype} is not allowed; use a floating point type, or auto")
        height, width = size = detector.input_size if size is None else size
        if min(size) < 1 or height % detector.stride or width % detector.stride:
            raise UserError(f"size: {height}x{width} is not a multiple of {detector.stride}; use one in both")
        if batch < 1:
            raise UserError(f"batch: {batch} is not allowed; use 1 or more")
        for modality in sensors or ():
            if modality not in detector.modalities:
                raise UserError(f"sensors: {unknown_name(modality, detector.modalities, 'modality of this detector')}")
        self.batch = batch
        self.sensors, self.classes = detector.sensors, detector.classes
        self.sight = detector.sight.at(size)
        self.network = detector.folded().to(dtype).to(memory_format=torch.channels_last)
        self._graphs: dict[_Kind, _Graph] = {}
        if self.backend != "eager":
            self._recorder = Recorder(self.network.device)
            self._check([m for m in self.modalities if m in (sensors or self.modalities)])

    @property
    def device(self) -> torch.device:
        """Where what it finds lies: on the host, if graphs find it."""
        return self.network.device if self.backend == "eager" else torch.device("cpu")

    @property
    def parameter_count(self) -> int:
        """The number of its parameters, norms folded."""
        return self.network.parameter_count

    @property
    def digest(self) -> str:
        """A hash of all that it is made of, norms folded."""
        return self.network.digest

    @property
    def again(self) -> Finder:
        """The network, for which nothing has to be captured."""
        return self.network

    def look(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        contents: Tensor | None = None,
        selection: Selection = DEFAULT,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> list[Detections]:
        """Does what `Detector.look` does."""
        if self.backend == "eager" or not self._fit(images):
            found = self.network.look(images, present, contents, selection, doubt, stuck)
            return [one.to(self.device) for one in found]
        check_doubting(doubt)
        presence = Presence.given(self.modalities, images, present)
        there = [m for m in self.modalities if not presence.rows[m].nothing]
        kind = _Kind(tuple((m, images[m].dtype) for m in there), presence.plain, selection, doubt)
        told = self._told(presence, contents, stuck or {})
        found = []
        with torch.inference_mode():
            graph = self._graph(kind)
            for start in range(0, len(told), self.batch):
                part = slice(start, start + self.batch)
                given = {m: images[m][part] for m in there}
                answer = _Answer.of(graph(given, told[part]), selection.max_detections)
                found += answer.detections(self.modalities, self.classes)
                if answer.doubts.isinf().any():  # perhaps no sensor of an image is left
                    moved = {m: to_device(x, self.network.device) for m, x in given.items()}
                    masks = {m: present[m][part] for m in there if m in present}
                    broken_sensors(given, self.network.normalise(moved), masks)
        return found

    def _fit(self, images: Mapping[str, Tensor]) -> bool:
        """Whether images are of the size of the graphs; the network says what is wrong with others."""
        batch = {x.shape[:1] for x in images.values()}
        return len(batch) == 1 and all(
            m in self.sensors and x.shape[1:] == (self.sensors[m].prepared_channels, *self.input_size)
            for m, x in images.items()
        )

    def _told(self, presence: Presence, contents: Tensor | None, stuck: Mapping[str, Tensor]) -> Tensor:
        """Returns what a graph is told of each image besides its pixels: (B, 2 + 2 M) on the host."""
        told = torch.zeros(presence.batch, 2 + 2 * len(self.modalities))
        told[:, :2] = torch.tensor(self.input_size) if contents is None else contents
        for k, (m, rows) in enumerate(presence.rows.items(), 2):
            told[:, k] = rows.host if isinstance(rows.mask, Tensor) else float(rows.mask)
            if m in stuck:
                told[:, k + len(self.modalities)] = stuck[m]
        return told

    def _graph(self, kind: "_Kind") -> "_Graph":
        graph = self._graphs.pop(kind, None)
        if graph is None:
            _log.info("fast: capturing %s for batches of up to %d", kind, self.batch)
            if len(self._graphs) >= MOST:
                del self._graphs[next(iter(self._graphs))]
            graph = _Graph(self.network, kind, self.batch, self.input_size, self.backend == "compile", self._recorder)
        self._graphs[kind] = graph  # the last one is the latest used
        return graph

    def _check(self, sensors: Collection[str]) -> None:
        """Captures what answers images of `sensors`, and compares its answer with the network's."""
        generator = torch.Generator().manual_seed(0)
        images = {}
        for m in sensors:
            sensor, shape = self.sensors[m], (self.batch, self.sensors[m].prepared_channels, *self.input_size)
            low, high = sensor.seen or (0, 255)
            kind = torch.uint8 if sensor.dtype == "" else getattr(torch, sensor.dtype)
            drawn = low + (high - low) * torch.rand(shape, generator=generator)
            images[m] = drawn.to(kind).to(self.network.device)
        with torch.inference_mode():
            answers = self.look(images, {}), self.network.look(images, {})
        for got, expected in zip(*answers, strict=True):
            scores = pad_sequence([got.scores, expected.scores.cpu()], batch_first=True)
            apart = (scores[0] - scores[1]).abs()
            if not bool((apart < NEAR).all()):
                raise UserError(
                    f"backend: {self.backend} answers with scores {float(apart.max()):.3f} away from the network's; "
                    "use backend='eager', and report it"
                )


@dataclass(frozen=True)
class _Kind:
    """What one graph answers: images of these sensors and types, all of which are there or not, and what is asked."""

    images: tuple[tuple[str, torch.dtype], ...]
    whole: bool
    selection: Selection
    doubt: Doubting

    def __str__(self) -> str:
        seen = ", ".join(f"{m} {str(kind).removeprefix('torch.')}" for m, kind in self.images)
        return seen if self.whole else f"{seen}, some missing"


class Recorder:
    """Records CUDA graphs that share one memory for all that lies between what they read and what they answer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Returns what does on the device what `run` did when it was recorded; cuDNN has chosen its ways before."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    run()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                kept = run()

        def replay() -> Tensor:
            graph.replay()
            return kept

        return replay


class _Graph:
    """The CUDA graph of one kind of batch, with the memory that it reads and writes."""

    def __init__(
        self,
        network: Detector,
        kind: _Kind,
        batch: int,
        size: tuple[int, int],
        compiled: bool,
        recorder: "Recorder",
    ) -> None:
        self.network = network
        self.kind = kind
        device = network.device
        self.images = {
            m: torch.zeros(batch, network.sensors[m].prepared_channels, *size, dtype=dtype, device=device).contiguous(
                memory_format=torch.channels_last
            )
            for m, dtype in kind.images
        }
        modalities = len(network.modalities)
        self.told = torch.zeros(batch, 2 + 2 * modalities, device=device)
        self.told[:, :2] = torch.tensor(size, device=device)
        self.told[:, 2 : 2 + modalities] = 1
        self.last = torch.empty(0)
        answer = torch.compile(self._answer, fullgraph=True, dynamic=False) if compiled else self._answer
        try:
            self.replay = recorder.record(answer)
        except Exception as error:  # whatever a capture or a compiler stumbles over
            first = str(error).strip().partition("\n")[0]
            raise UserError(f"backend: this detector can't be captured ({first}); use backend='eager'") from error

    def __call__(self, images: Mapping[str, Tensor], told: Tensor) -> Tensor:
        """Returns the packed answer (n, D) for n images, on the host, which waits for it."""
        count = len(told)
        for m, x in images.items():
            self.images[m][:count].copy_(x, non_blocking=True)
        if not torch.equal(told, self.last):
            self.told[:count].copy_(told.pin_memory() if self.told.is_cuda else told, non_blocking=True)
            self.last = told
        return self.replay()[:count].cpu()

    def _answer(self) -> Tensor:
        contents, masks, again = self.told.split((2, *[len(self.network.modalities)] * 2), 1)
        names = self.network.modalities
        seen = {} if self.kind.whole else {m: masks[:, k] > 0 for k, m in enumerate(names) if m in self.images}
        stuck = {m: again[:, k] > 0 for k, m in enumerate(names)}
        told = self.network.find_padded(self.images, seen, contents, self.kind.selection, self.kind.doubt, stuck)
        return torch.cat([x.flatten(1).float() for x in told], 1)


@dataclass(frozen=True)
class _Answer:
    """What `Detector.find_padded` returns, on the host."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    doubts: Tensor
    dropped: Tensor
    disagreeing: Tensor

    @staticmethod
    def of(packed: Tensor, most: int) -> "_Answer":
        modalities = (packed.shape[1] - 6 * most) // 3
        boxes, scores, labels, doubts, dropped, disagreeing = packed.split((4 * most, most, most, *[modalities] * 3), 1)
        labels, dropped, disagreeing = labels.long(), dropped > 0, disagreeing > 0
        return _Answer(boxes.unflatten(1, (most, 4)), scores, labels, doubts, dropped, disagreeing)

    def detections(self, modalities: tuple[str, ...], classes: tuple[str, ...]) -> list[Detections]:
        """Returns what is found in each image, with what is thought of its sensors."""
        counts = (self.labels >= 0).sum(1).tolist()
        each = zip(self.boxes, self.scores, self.labels, counts, strict=True)
        found = [Detections(b[:n], s[:n], k[:n], classes=classes) for b, s, k, n in each]
        return Judgement(self.doubts, self.dropped, self.disagreeing).tell(found, modalities)


def _backend(asked: str, on_cuda: bool) -> str:
    if asked not in get_args(Backend):
        raise UserError(f"backend: {unknown_name(asked, get_args(Backend), 'backend')}")
    if asked != "eager" and on_cuda and not kernels_run():
        if asked != "auto":
            raise UserError(f"backend: {asked} needs Triton and a C compiler, which don't run here; use eager")
        return "eager"
    if asked == "auto":
        return "graph" if on_cuda else "eager"
    if asked != "eager" and not on_cuda:
        raise UserError(f"backend: {asked} needs a CUDA device, the detector is on the CPU; move it, or use eager")
    return asked
