"""Opens what `mmfuse export` wrote, and runs it like the detector that it was made from."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmfuse.errors import UserError
from mmfuse.exporting.header import CONTENT, KEY, OUTPUTS, PRESENT, Header, pixel_type
from mmfuse.files import read_regular
from mmfuse.images.sight import Sight
from mmfuse.model import checkpoint
from mmfuse.model.detector import Finder
from mmfuse.model.doubt import Doubting, Judgement, broken_sensors, check_doubting
from mmfuse.model.postprocess import DEFAULT, Selection
from mmfuse.sample import Detections

ONNX, PT2 = ".onnx", ".pt2"

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, np.ndarray], list[np.ndarray]]


def load(
    path: str | Path, device: str | torch.device = "cpu", *, backbones: Mapping[str, nn.Module] | None = None
) -> Any:
    """Returns the detector of a run folder, its best, or of a checkpoint; see `mmfuse.model.checkpoint.load`.

    Of a file that `mmfuse export` wrote, .onnx, it returns an `ExportedDetector`, which finds objects as the
    detector does.

    Raises:
        UserError: the device can't be used, the file is missing, cut short, of another program or version, or a .pt2,
            for PyTorch would run what it says.
    """
    if Path(path).suffix in (ONNX, PT2):
        return ExportedDetector(Path(path), device)
    return checkpoint.load(path, device, backbones=backbones)


class ExportedDetector(Finder):
    """A detector that was exported to a file, run by ONNX Runtime.

    What was decided at export can't be asked for otherwise: the overlap at which boxes are suppressed, what comes of
    doubt, and a lower threshold or more detections.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        if path.suffix == PT2:
            fix = "open your own by torch.export.load, or export to .onnx, which is safe"
            raise UserError(f"{path}: isn't opened by mmfuse, for PyTorch would run what such a file says; {fix}")
        try:
            self.content = read_regular(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; export a run to it, or check the path") from None
        self.path = path
        self.header, self._run = _open(path, self.content, str(device))
        header = self.header
        self.sensors, self.classes = dict(header.sensors), header.classes
        self.sight = Sight(self.sensors, header.size, header.stride)

    @property
    def doubting(self) -> Doubting:
        """What comes of doubt: as was decided at export."""
        return self.header.doubt

    @property
    def device(self) -> torch.device:
        """Where what it finds is given: on the host."""
        return torch.device("cpu")

    @property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def parameter_count(self) -> int:
        """The number of parameters of the detector that it was made from."""
        return self.header.parameters

    def look(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        contents: Tensor | None = None,
        selection: Selection = DEFAULT,
        doubt: Doubting = "drop",
        stuck: Mapping[str, Tensor] | None = None,
    ) -> list[Detections]:
        """Does what `Detector.look` does, but that it takes no notice of frames that are `stuck`.

        Raises:
            UserError: it is asked for what was decided otherwise at export.
        """
        check_doubting(doubt)
        self._check(images, selection, doubt)
        if doubt != "off":
            encoded = {m: self.sensors[m].encode(x) if x.is_floating_point() else x for m, x in images.items()}
            broken_sensors(images, encoded, present)
        first = next(iter(images.values()))
        batch, (height, width) = len(first), self.header.size
        if contents is None:
            contents = torch.tensor([self.header.size] * batch, dtype=torch.float32)
        masks = {
            m: present.get(m, torch.ones(batch, dtype=torch.bool)).cpu()
            if m in images
            else torch.zeros(batch, dtype=torch.bool)
            for m in self.sensors
        }
        given = {
            m: _pixels(images[m], m, pixel_type(sensor))
            if m in images
            else np.zeros((batch, sensor.prepared_channels, height, width), pixel_type(sensor))
            for m, sensor in self.sensors.items()
        }
        found: dict[int, Detections] = {}
        for rows in _alike(contents, self.header.batch):
            part = {m: x[rows] for m, x in given.items()}
            part |= {PRESENT + m: mask.numpy()[rows] for m, mask in masks.items()}
            told = [torch.from_numpy(x) for x in self._run(part, contents[rows[0]].float().numpy())]
            found |= dict(zip(rows, self._detections(told, selection), strict=True))
        return [found[row] for row in range(batch)]

    def _detections(self, told: list[Tensor], selection: Selection) -> list[Detections]:
        boxes, scores, labels, *judged = told
        kept = (labels >= 0) & (scores > selection.threshold)
        kept &= kept.cumsum(1) <= selection.max_detections
        some = [
            Detections(box[row], score[row], label[row], classes=self.classes)
            for box, score, label, row in zip(boxes, scores, labels, kept, strict=True)
        ]
        return Judgement(*judged).tell(some, self.modalities)

    def _check(self, images: Mapping[str, Tensor], selection: Selection, doubt: Doubting) -> None:
        made = self.header.selection
        options = {name: (getattr(selection, name), was) for name, was in asdict(made).items()}
        for name, (asked, was) in (options | {"doubt": (doubt, self.header.doubt)}).items():
            less = (name == "threshold" and asked > was) or (name == "max_detections" and asked < was)
            if asked != was and not less:
                raise UserError(f"{self.path}: {name}: {asked} is asked for, the file was made for {was}; export it so")
        sizes = {m: tuple(x.shape[2:]) for m, x in images.items()}
        if not images or any(size != self.header.size for size in sizes.values()):
            wanted = "x".join(map(str, self.header.size))
            raise UserError(f"{self.path}: sees images of {wanted}, given are {sizes}; leave resize as it is")


def _pixels(images: Tensor, modality: str, kind: str) -> np.ndarray:
    """Returns images in the type that a file takes.

    Raises:
        UserError: they hold values that it hasn't.
    """
    wanted = getattr(torch, kind)
    pixels = images.cpu()
    made = pixels.to(torch.float32).to(wanted) if pixels.dtype != wanted else pixels
    if kind != "float32" and not torch.equal(made.to(torch.float32), pixels.to(torch.float32)):
        raise UserError(f"images: {modality} holds {pixels.dtype}, the exported detector takes {kind}; give that")
    return made.numpy()


def _alike(contents: Tensor, batch: int) -> list[list[int]]:
    """Returns the rows of images whose content has one size, at most `batch` of them if not 0."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, sides in enumerate(contents.tolist()):
        groups.setdefault(tuple(sides), []).append(row)
    return [
        rows[i : i + (batch or len(rows))] for rows in groups.values() for i in range(0, len(rows), batch or len(rows))
    ]


def _filled(given: Arrays, batch: int) -> tuple[dict[str, np.ndarray], int]:
    """Repeats the last image until there are `batch` of them; returns how many there were."""
    count = len(next(iter(given.values())))
    lacking = batch - count if batch else 0
    return {
        name: np.concatenate((x, np.repeat(x[-1:], lacking, 0))) if lacking else x for name, x in given.items()
    }, count


def header_of(path: Path) -> Header:
    """Returns what an exported file says of itself.

    Raises:
        UserError: as `load`.
    """
    return ExportedDetector(path).header


def _open(path: Path, content: bytes, device: str) -> tuple[Header, Run]:
    session = onnx_session(content, str(path), device)
    header = Header.read(session.get_modelmeta().custom_metadata_map.get(KEY, ""), str(path))

    def run(given: Arrays, content: np.ndarray) -> list[np.ndarray]:
        filled, count = _filled(given, header.batch)
        return [x[:count] for x in session.run(OUTPUTS, filled | {CONTENT: content})]

    return header, run


def onnx_session(content: bytes, place: str, device: str = "cpu") -> Any:
    """Returns a session of ONNX Runtime, with as many threads as PyTorch has.

    Raises:
        UserError: it isn't installed, or can't read the content.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{place}: needs ONNX Runtime; run pip install 'mmfuse[export]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    wanted = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if wanted not in onnxruntime.get_available_providers():
        raise UserError(f"device: {device!r} can't be used here by ONNX Runtime; use cpu, or install onnxruntime-gpu")
    providers = list(dict.fromkeys((wanted, "CPUExecutionProvider")))
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # its errors have no class of their own that is public
        detail = " ".join(str(error).split())[:120]
        raise UserError(f"{place}: can't be read as ONNX ({detail}); export it again") from None
