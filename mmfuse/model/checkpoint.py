"""Checkpoints: one safetensors file with the tensors, and JSON in its header that says how to build what they fill."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmfuse import strict_yaml
from mmfuse.architecture import Architecture
from mmfuse.environment import usable
from mmfuse.errors import UserError, require
from mmfuse.files import new_folder, open_regular, read_regular, write_whole
from mmfuse.model.build import create_detector
from mmfuse.model.detector import Detector
from mmfuse.model.hub import CARD, CONFIG, WEIGHTS, HubName, fetch, is_hub
from mmfuse.sensor import Sensor

FORMAT = "mmfuse-3"
_KEY = "mmfuse"
_MOST = 16384
_LARGEST_CONFIG = 2**20


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes tensors and a JSON header to one file, whole or not at all; the same ones give the same bytes.

    Raises:
        UserError: the file can't be written.
    """
    metadata = {_KEY: json.dumps({"format": FORMAT, **header})}  # one key: safetensors writes several in any order
    content = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(content, metadata))


def read(path: Path, *, with_tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the header of a file, or the header alone.

    Raises:
        UserError: the file is missing, truncated or not one of ours.
    """
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            header = _header(file.metadata() or {})
            form = header.pop("format", "")
            if form.startswith("mmfuse-") and form != FORMAT:
                raise UserError(f"{path}: is of the format {form}, this version reads {FORMAT}; train it again")
            if form != FORMAT:
                raise UserError(f"{path}: is not an mmfuse checkpoint; give a run folder or its best.safetensors")
            if not isinstance(header.get("notes", {}), dict):
                raise UserError(f"{path}: its notes are no mapping; restore or retrain it")
            keys = file.keys() if with_tensors else ()
            return {key: file.get_tensor(key) for key in keys}, header
    except FileNotFoundError:
        raise UserError(f"{path}: does not exist; train first, or check the path") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        detail = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: can't be read as a checkpoint ({detail}); restore or retrain it") from None


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns the header of a file of ours, with its "format"; of one before mmfuse-3 that alone, of others nothing."""
    header = json.loads(metadata.get(_KEY, "{}"))
    header = header if isinstance(header, dict) else {}
    return {"format": str(header.get("format", metadata.get("format", "")))} | {
        key: value for key, value in header.items() if key != "format"
    }


def save_detector(path: Path, detector: Detector, notes: dict[str, Any]) -> None:
    """Writes a detector; `notes` travel in the header (how it was trained and scored).

    Raises:
        UserError: the detector is folded, or the file can't be written.
    """
    if detector.frozen:
        raise UserError(f"{path}: a folded detector can't be saved; save the one that it was made from")
    save(path, dict(detector.state_dict()), {"spec": detector.spec, "notes": notes})


def save_folder(folder: Path, detector: Detector, notes: Mapping[str, Any], card: str = "") -> None:
    """Writes a detector as a new folder for others, with the page `card` if there is one; whole or not at all.

    Raises:
        UserError: the folder isn't new or empty, the detector is folded, or a file can't be written.
    """
    with new_folder(folder) as partial:
        save_detector(partial / WEIGHTS, detector, dict(notes))
        write_whole(partial / CONFIG, json.dumps({"format": FORMAT, "spec": detector.spec}, indent=2).encode())
        if card:
            write_whole(partial / CARD, card.encode())


@dataclass(frozen=True)
class Spec(Architecture):
    """What a header says of a detector, strictly read; a stranger's may say anything, so there are bounds."""

    modalities: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    sensors: dict[str, Sensor] = field(default_factory=dict)
    input_size: tuple[int, int] = (0, 0)
    own_backbones: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = {"width": self.scale.width, "pyramid_depth": self.scale.pyramid_depth}
        numbers |= {"head_depth": self.scale.head_depth, "classes": len(self.classes), "modalities": len(self.sensors)}
        numbers |= {f"sensors.{m}.channels": sensor.channels for m, sensor in self.sensors.items()}
        for name, number in (*numbers.items(), *(("input_size", side) for side in self.input_size)):
            require(number <= _MOST, name, number, f"no detector has more than {_MOST}")

    @staticmethod
    def read(header: Mapping[str, Any], place: str) -> "Spec":
        """Reads it from the header of a checkpoint.

        Raises:
            UserError: it isn't a detector's.
        """
        return strict_yaml.build(Spec, header.get("spec"), f"{place}: spec")


def build(spec: Any, backbones: Mapping[str, nn.Module] | None = None, *, place: str = "header") -> Detector:
    """Builds the detector that a header's "spec" describes, with fresh weights; `backbones` are the user's own modules.

    Raises:
        UserError: that isn't a detector's, or it has other own backbones than are given.
    """
    read = Spec.read({"spec": spec}, place)
    needed, given = list(read.own_backbones), sorted(backbones or {})
    if needed != given:
        fix = "give them as mmfuse.load(path, backbones={name: module})" if needed else "leave out backbones"
        raise UserError(f"backbones: the detector has own ones for {needed}, given are {given}; {fix}")
    values = {f.name: getattr(read, f.name) for f in fields(read) if f.name != "own_backbones"}
    return create_detector(**values, backbones=backbones)


def fill(detector: Detector, tensors: dict[str, Tensor], path: Path) -> None:
    """Loads tensors into a detector, strictly.

    Raises:
        UserError: a tensor is missing, left over or of another shape; the detector is as it was.
    """
    _begin_doubts(detector, tensors)
    own = detector.state_dict()
    for key in own.keys() | tensors.keys():
        if key not in own or key not in tensors:
            state = "missing" if key in own else "unknown"
            raise UserError(f"{path}: the tensor {key!r} is {state}; the file is from another version or detector")
        if own[key].shape != tensors[key].shape:
            shapes = f"{tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
            raise UserError(f"{path}: the tensor {key!r} has shape {shapes}; the file is from another detector")
    detector.load_state_dict(tensors)


def _begin_doubts(detector: Detector, tensors: Mapping[str, Tensor]) -> None:
    """Gives a detector what judges its sensors, where a calibrated one was saved."""
    if not detector.doubts and any("judges." in key for key in tensors):
        detector.begin_doubt()
        if not any(key.startswith("agreement.") for key in tensors):  # it was calibrated before there was any
            detector.agreement = None


def thresholds(path: str | Path) -> dict[str, float]:
    """Returns the score by class that training chose on validation, of a run folder or checkpoint; {} if none was.

    Raises:
        UserError: the file is missing or isn't a checkpoint, or what it says are no scores of its classes.
    """
    path = located(path)
    header = read(path, with_tensors=False)[1]
    noted = header.get("notes", {}).get("thresholds", {})
    classes = Spec.read(header, str(path)).classes if noted else ()
    if not isinstance(noted, dict) or any(
        name not in classes or not isinstance(score, float) or not 0 <= score <= 1 for name, score in noted.items()
    ):
        raise UserError(f"{path}: its thresholds aren't scores of its classes; restore or retrain it")
    return noted


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is a run folder, a name on the Hub, or a file of tensors and a header of ours."""
    if is_hub(path):
        return True
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return path.is_dir()
    try:
        with safe_open(path, framework="pt") as file:
            return bool(_header(file.metadata() or {})["format"].startswith("mmfuse-"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return False


def load(
    path: str | Path, device: str | torch.device = "cpu", *, backbones: Mapping[str, nn.Module] | None = None
) -> Detector:
    """Returns the detector of a run folder (its best) or of a checkpoint file, in eval mode, its weights channels last.

    Or of a folder that `mmfuse.publish` wrote, or of one like it on the Hugging Face Hub: "hub:user/name", or
    "hub:user/name@revision" with a branch, tag or commit. `backbones` are modules of your own that it was built with,
    by modality.

    Raises:
        UserError: the device can't be used, the file is missing or isn't a checkpoint, or the Hub isn't reached.
    """
    device = usable(device)
    path = located(path)
    tensors, header = read(path)
    if "spec" not in header or "step" in header:
        raise UserError(f"{path}: holds a training state, not a detector; give best.safetensors beside it")
    if path.name == WEIGHTS and (config := path.with_name(CONFIG)).exists() and _config(config) != header["spec"]:
        raise UserError(f"{config}: describes another detector than {WEIGHTS}; take both of one revision")
    detector = build(header["spec"], backbones, place=str(path))
    fill(detector, tensors, path)
    return detector.to(device).to(memory_format=torch.channels_last).eval()


def located(path: str | Path) -> Path:
    """Returns the file of a detector, given as for `load`; from the Hub both of its files are fetched, of one commit.

    The small one is first and strictly read, so that nothing large is fetched that isn't a detector of ours.

    Raises:
        UserError: it isn't on the Hub, isn't one of ours, or the Hub isn't reached.
    """
    if is_hub(path):
        config, commit = fetch(HubName.read(path), CONFIG)
        try:
            _config(config)
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{config}: ')}") from None
        return fetch(commit, WEIGHTS)[0]
    path = Path(path)
    if path.is_dir():
        best, shared = path / "best.safetensors", path / WEIGHTS
        return shared if shared.exists() and not best.exists() else best
    return path


def _config(path: Path) -> object:
    """Returns what a configuration says of its detector.

    Raises:
        UserError: it isn't one of ours, or of another version.
    """
    try:
        content = read_regular(path) if path.stat().st_size <= _LARGEST_CONFIG else b""
        values = json.loads(content)
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or set(values) != {"format", "spec"}:
        raise UserError(f"{path}: isn't the {CONFIG} of a detector of mmfuse's; give one that mmfuse published")
    if values["format"] != FORMAT:
        raise UserError(f"{path}: is of the format {values['format']!r}, this version reads {FORMAT}; train it again")
    Spec.read(values, str(path))
    return values["spec"]
