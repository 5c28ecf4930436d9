import json
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
    """Each time, as safetensors hashes keys of its header anew, and in every process, as Python hashes text anew."""
    program = (
        "import sys, torch; from mmfuse.model.build import create_detector; from mmfuse.model import checkpoint\n"
        "torch.manual_seed(0)\n"
        "made = create_detector('d-4', {'rgb': 3, 'thermal': 1}, classes=['a', 'b'])\n"
        "from pathlib import Path; checkpoint.save_detector(Path(sys.argv[1]), made, {'name': 'x', 'val': {'ap': 0.5}})"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "other"], check=True)
    torch.manual_seed(0)
    made = create_detector("d-4", {"rgb": 3, "thermal": 1}, classes=["a", "b"])
    for i in range(4):
        checkpoint.save_detector(tmp_path / str(i), made, {"name": "x", "val": {"ap": 0.5}})
        assert (tmp_path / str(i)).read_bytes() == (tmp_path / "other").read_bytes()


def nested(depth):
    return "[" * depth + "]" * depth


WRONG = {
    "no spec": ({"notes": {}}, "holds a training state, not a detector"),
    "a list": ([1], "is not an mmfuse checkpoint"),
    "spec a list": ({"spec": [1]}, r"spec: \[1\] is not a mapping"),
    "spec null": ({"spec": None}, "spec: None is not a mapping"),
    "size an int": ({"size": 5}, r"size: 5 is not text"),
    "width": ({"width": 10**9}, r"width: 1000000000 is not allowed; no detector has more than"),
    "depth": ({"pyramid_depth": 10**7}, "pyramid_depth: 10000000 is not allowed"),
    "a huge size": ({"size": "d99"}, "width: .* is not allowed"),
    "input": ({"input_size": [10**9, 10**9]}, "input_size: 1000000000 is not allowed"),
    "channels": (
        {"sensors.rgb.channels": 10**9, "sensors.rgb.mean": [], "sensors.rgb.std": []},
        "channels: 1000000000 is not",
    ),
    "an extra key": ({"run": "rm"}, "'run' is not a known key"),
    "classes a map": ({"classes": {"a": 1}}, "classes: {'a': 1} is not a list"),
    "no classes": ({"classes": []}, "num_classes: None with 0 class names"),
    "null means": ({"sensors.rgb.mean": None}, "sensors.rgb.mean: None is not a list"),
    "a text for a number": ({"sensors.rgb.unit": "x"}, "sensors.rgb.unit: 'x' is not a number"),
    "notes a list": ({"notes": [1]}, "its notes are no mapping"),
    "weights": ({"weights": "tf_efficientdet_d0"}, "'weights' is not a known key"),
    "nan": ({"sensors.rgb.unit": float("nan")}, "unit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_stranger_s_header_is_one_line(detector, tmp_path, name):
    changes, message = WRONG[name]
    header = {"format": checkpoint.FORMAT, "spec": json.loads(json.dumps(detector.spec)), "notes": {}}
    if not isinstance(changes, dict):
        header = changes
    elif name == "no spec":
        header = {"format": checkpoint.FORMAT} | changes
    else:
        for key, value in changes.items():
            place = header if key in ("spec", "notes") else header["spec"]
            *outer, last = key.split(".")
            for part in outer:
                place = place[part]
            place[last] = value
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, {"mmfuse": json.dumps(header)})
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", nested(10**5), '{"spec": ' + "9" * 5000 + "}", "\x00"])
def test_a_header_that_is_no_json_is_one_line(tmp_path, text):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"mmfuse": text})
    with pytest.raises(UserError, match=r"x.safetensors: can't be read as a checkpoint \(.*\); restore or retrain it"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_thresholds_travel_in_the_notes(detector, tmp_path):
    path = tmp_path / "best.safetensors"
    checkpoint.save_detector(path, detector, {"thresholds": {detector.classes[0]: 0.25}})
    assert checkpoint.thresholds(path) == checkpoint.thresholds(tmp_path) == {detector.classes[0]: 0.25}
    checkpoint.save_detector(path, detector, {})
    assert checkpoint.thresholds(path) == {}
    with pytest.raises(UserError, match=r"none\.safetensors: does not exist"):
        checkpoint.thresholds(tmp_path / "none.safetensors")


@pytest.mark.parametrize("value", [[0.5], {"nobody": 0.5}, {"": 0.5}, "high", 1.5, -0.1, float("nan"), None, True])
def test_a_stranger_s_thresholds_are_refused(detector, tmp_path, value):
    wrong = value if isinstance(value, list | dict | str) else {detector.classes[0]: value}
    checkpoint.save_detector(tmp_path / "x.safetensors", detector, {"thresholds": wrong})
    with pytest.raises(UserError, match=r"x\.safetensors: its thresholds aren't scores of its classes; restore"):
        checkpoint.thresholds(tmp_path / "x.safetensors")
