import pickle
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.model.build import create_detector
from mmfuse.sensor import Sensor


@pytest.fixture
def detector():
    sensors = {"depth": Sensor(1, "inverse_depth", mean=(0.3, 0.9), std=(0.2, 0.1))}
    return create_detector("d-4", {"rgb": 3, "depth": 2}, classes=["a", "b"], sensors=sensors).eval()


def test_a_detector_comes_back_as_it_was(detector, tmp_path):
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {})
    back = checkpoint.load(tmp_path / "x.safetensors")
    assert back.sensors == detector.sensors
    assert back.classes == ("a", "b")
    raw = {"rgb": torch.randint(0, 256, (1, 3, 64, 64)), "depth": torch.randint(0, 9000, (1, 1, 64, 64))}
    assert torch.equal(back.detect(raw)[0].boxes, detector.detect(raw)[0].boxes)


class _Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_Bomb()), "can't be read as a checkpoint"),
        (b"", "can't be read as a checkpoint"),
        (safetensors.torch.save({"x": torch.zeros(1)}), "is not an mmfuse checkpoint"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(content, message, tmp_path):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)


def test_a_truncated_file_is_one_line(detector, tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save_detector(path, detector, {})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        checkpoint.load(path)


def test_tensors_that_do_not_fit_leave_the_detector_as_it_is(detector, tmp_path):
    own = {k: v.clone() for k, v in detector.state_dict().items()}
    key = "class_head.predict.pointwise.bias"
    for tensors, message in (
        ({**own, "more": torch.zeros(1)}, "unknown"),
        ({k: v for k, v in own.items() if k != key}, "missing"),
        ({**own, key: torch.zeros(3)}, "has shape"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.fill(detector, {k: v + 1 for k, v in tensors.items()}, tmp_path)
    assert all(torch.equal(v, own[k]) for k, v in detector.state_dict().items())


def test_a_failed_write_names_the_file(detector, tmp_path):
    (tmp_path / "x").write_text("a file")
    with pytest.raises(UserError, match=r"x: lies in the way of .*x\.safetensors; check the path"):
        checkpoint.save_detector(tmp_path / "x" / "x.safetensors", detector, {})


def test_a_file_of_another_version_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", "mmfuse-1")
    checkpoint.save(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    monkeypatch.undo()
    with pytest.raises(
        UserError, match=r"x\.safetensors: is of the format mmfuse-1, this version reads mmfuse-3; train"
    ):
        checkpoint.read(tmp_path / "x.safetensors")


def test_the_same_detector_is_the_same_bytes(tmp_path):
    """In every process: safetensors hashes the keys of its header anew each time."""
    program = (
        "import sys, torch; from mmfuse.model.build import create_detector; from mmfuse.model import checkpoint\n"
        "torch.manual_seed(0)\n"
        "made = create_detector('d-4', {'rgb': 3, 'thermal': 1}, classes=['a', 'b'])\n"
        "from pathlib import Path; checkpoint.save_detector(Path(sys.argv[1]), made, {'name': 'x', 'val': {'ap': 0.5}})"
    )
    for i in range(3):
        subprocess.run([sys.executable, "-c", program, tmp_path / str(i)], check=True)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(3)}) == 1
