"""Prediction: one scene or many, from any source, written in parts that add up to one file."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.cli import main
from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.model.checkpoint import load, save_detector
from mmfuse.recipes import DataRecipe, ModelRecipe, Recipe
from mmfuse.run import Run
from mmfuse.sample import Detections, Scene
from mmfuse.sensor import Calibration, Sensor
from mmfuse.sources.opening import scenes
from mmfuse.strict_yaml import save_yaml
from mmfuse.verbs import predict as module
from mmfuse.verbs.predict import predict

SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1)}


@pytest.fixture
def trained(tmp_path):
    """Makes a run of a fresh detector with the given sensors."""

    def make(**sensors):
        torch.manual_seed(0)
        channels = {m: s.encoded_channels for m, s in sensors.items()}
        names = ["thing", "other"]
        detector = create_detector("d-4", channels, classes=names, sensors=sensors, input_size=(128, 128)).eval()
        recipe = Recipe("x", "card.yaml", tuple(sensors), ModelRecipe("d-4"), DataRecipe(input_size=(128, 128)))
        run = Run(tmp_path / "run")
        save_yaml(run.folder / "config.yaml", recipe.to_dict())
        save_detector(run.best, detector, {})
        return run

    return make


def write(path, size=(128, 96), dtype=np.uint8, channels=0, seed=0):
    shape = (size[1], size[0], channels) if channels else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(500, 3000, shape).astype(dtype)).save(path)
    return path


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture
def folders(tmp_path):
    """Two folders of nine images each, of different sizes, one of which lacks its partner and one is broken."""
    for i in range(9):
        size = (64 + 8 * i, 96)
        write(tmp_path / "set" / "rgb" / f"{i}.png", size, channels=3, seed=i)
        if i != 4:
            write(tmp_path / "set" / "thermal" / f"{i}.png", size, seed=i)
    broken = tmp_path / "set" / "rgb" / "7.png"
    broken.write_bytes(broken.read_bytes()[:500])
    return tmp_path / "set"


# ---- one scene


def test_one_scene_gives_its_detections(trained, tmp_path):
    run = trained(rgb=Sensor(3))
    path = write(tmp_path / "x.png", channels=3)
    found = predict(run, {"rgb": path}, threshold=0.0)
    detector = load(run.best)
    for other in (
        detector.detect({"rgb": path})[0],
        predict(detector, {"rgb": np.array(opened(path))}, threshold=0.0),
        predict(str(run.folder), Scene({"rgb": str(path)}), threshold=0.0),
        predict(run.best, {"rgb": opened(path)}, threshold=0.0),
        next(predict(detector, [Scene({"rgb": path})], threshold=0.0)).found,
    ):
        torch.testing.assert_close(found.boxes, other.boxes, rtol=1e-4, atol=1e-3)  # norms are folded
        torch.testing.assert_close(found.scores, other.scores)


def test_boxes_are_in_pixels_of_the_file_border_and_all(trained, tmp_path):
    plain, cut = tmp_path / "plain.png", tmp_path / "cut.png"
    write(plain, channels=3)
    pixels = np.array(opened(plain))
    Image.fromarray(np.pad(pixels, ((7, 5), (10, 3), (0, 0)))).save(cut)
    expected = predict(trained(rgb=Sensor(3)), {"rgb": plain}, threshold=0.0)
    run = trained(rgb=Sensor(3, border=(10, 7, 3, 5)))
    found = predict(run, {"rgb": cut}, threshold=0.0)
    torch.testing.assert_close(found.boxes, expected.boxes + torch.tensor([10.0, 7, 10, 7]))
    torch.testing.assert_close(found.scores, expected.scores)


def test_another_pixel_type_than_in_training_is_refused(trained, tmp_path):
    run = trained(x=Sensor(1, dtype="uint16", range=(500, 3000)))
    with pytest.raises(UserError, match=r"x.png: holds uint8, but the sensor's files are uint16"):
        predict(run, {"x": write(tmp_path / "x.png")})
    with pytest.raises(UserError, match="images: x: holds uint8, but the sensor's files are uint16"):
        load(run.best).detect({"x": torch.zeros(1, 128, 128, dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, r"threshold: -0.1 is not allowed; use a score from 0 to 1"),
        ({"threshold": 1.5}, r"threshold: 1.5 is not allowed"),
        ({"threshold": float("nan")}, r"threshold: nan is not allowed"),
        ({"max_detections": 0}, r"max_detections: 0 is not allowed; use 1 or more"),
        ({"batch_size": 0}, r"batch_size: 0 is not allowed; use 1 or more"),
        ({"classes": ["thin"]}, r"classes: 'thin' is not a known class of this detector; .*'thing'"),
        ({"device": "foo"}, r"device: 'foo' can't be used here"),
        ({"threshold": {"thing": 1.5}}, r"threshold: 1.5 is not allowed; use a score from 0 to 1"),
        ({"threshold": {"thin": 0.5}}, r"threshold: 'thin' is not a known class of this detector; .*'thing'"),
    ],
)
def test_options_that_are_not_allowed_are_one_line(trained, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        predict(trained(x=Sensor(1)), {"x": write(tmp_path / "x.png")}, **options)


def test_classes_and_the_number_of_detections_are_chosen(trained, tmp_path):
    run, image = trained(x=Sensor(1)), {"x": write(tmp_path / "x.png")}
    every = predict(run, image, threshold=0.0)
    assert set(every.labels.tolist()) == {0, 1}
    assert set(predict(run, image, threshold=0.0, classes=["other"]).labels.tolist()) == {1}
    assert len(predict(run, image, threshold=0.0, max_detections=3)) == 3


# ---- many


def test_many_scenes_come_one_by_one_and_what_is_missing_is_told(trained, folders):
    detector = load(trained(**SENSORS).best)
    found = list(predict(detector, folders, threshold=0.0, batch_size=4, workers=2))
    assert [one.scene.name for one in found] == [str(i) for i in range(9)]
    assert [one.lost for one in found] == [(), (), (), (), ("thermal",), (), (), ("rgb",), ()]
    assert [len(one.problems) for one in found] == [0] * 7 + [1, 0]
    assert all(one.answered for one in found)
    for one in found[:4]:
        (alone,) = detector.detect(one.scene)
        torch.testing.assert_close(one.found.scores, alone.scores, rtol=1e-3, atol=1e-5)


def test_a_scene_without_any_image_is_gone_past(trained, folders):
    detector = load(trained(rgb=Sensor(3)).best)
    found = list(predict(detector, scenes(detector, folders / "rgb"), batch_size=2))
    assert [one.answered for one in found] == [True] * 7 + [False, True]
    assert len(found[7].found) == 0
    assert "7.png" in found[7].problems[0]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_is_the_same_whether_a_run_was_stopped_or_not(trained, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    detector = load(trained(**SENSORS).best)
    options = {"threshold": 0.0, "max_detections": 4, "batch_size": 2}
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    told = [one.to_dict() for one in predict(detector, folders, out=whole, **options)]
    assert lines(whole) == told
    assert [line["name"] for line in told] == [str(i) for i in range(9)]
    for _ in range(2):
        work = predict(detector, folders, out=stopped, **options)
        for _ in range(5):
            next(work)
        work.close()
        assert not stopped.exists()
    rest = [one.scene.name for one in predict(detector, folders, out=stopped, **options)]
    assert rest == ["8"]  # two parts of two were done in each of two tries
    assert stopped.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.glob("*.parts")) == []


def test_what_sensors_usually_show_is_known_beyond_a_part_unless_it_is_written(trained, folders, tmp_path, monkeypatch):
    made = []

    class Told(module.LastFrames):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(module, "PART", 2)
    monkeypatch.setattr(module, "LastFrames", Told)
    detector = load(trained(**SENSORS).best)
    assert len(list(predict(detector, folders))) == 9
    assert len(made) == 1
    list(predict(detector, folders, out=tmp_path / "x.jsonl"))
    assert len(made) > 5


def test_parts_of_something_else_are_not_gone_on_with(trained, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    detector = load(trained(**SENSORS).best)
    work = predict(detector, folders, out=tmp_path / "x.jsonl", batch_size=2)
    [next(work) for _ in range(3)]
    work.close()
    with pytest.raises(UserError, match=r"x.jsonl.parts: holds parts of another prediction"):
        list(predict(detector, folders, out=tmp_path / "x.jsonl", threshold=0.7))
    (folders / "rgb" / "0.png").unlink()
    (folders / "thermal" / "0.png").unlink()
    with pytest.raises(UserError, match=r"x.jsonl.parts: holds parts of another prediction"):
        list(predict(detector, folders, out=tmp_path / "x.jsonl"))


def test_coco_results_have_the_ids_of_the_images(trained, paired_set, folders, tmp_path):
    from pycocotools.coco import COCO

    detector = load(trained(**SENSORS).best)
    found = list(predict(detector, scenes(detector, paired_set, split="test"), threshold=0.0, out=tmp_path / "x.json"))
    rows = json.loads((tmp_path / "x.json").read_text())
    assert len(rows) == sum(len(one.found) for one in found) > 0
    assert {row["image_id"] for row in rows} == {one.scene.image_id for one in found}
    truth = COCO()
    truth.dataset = {"images": [{"id": one.scene.image_id} for one in found], "annotations": [], "categories": []}
    truth.createIndex()
    assert len(truth.loadRes(str(tmp_path / "x.json")).anns) == len(rows)
    with pytest.raises(UserError, match=r"y.json: COCO results need the id of each image, which '0' lacks; use .jsonl"):
        list(predict(detector, folders, threshold=0.0, out=tmp_path / "y.json"))


def test_an_output_that_cannot_be_written_is_one_line(trained, folders, tmp_path):
    detector = load(trained(**SENSORS).best)
    with pytest.raises(
        UserError, match=r"x.csv: can't be written: its suffix is unknown; use one of .jsonl, .json, .png"
    ):
        next(predict(detector, folders, out=tmp_path / "x.csv"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x.jsonl.parts/key: can't be written"):
        next(predict(detector, folders, out=tmp_path / "file" / "x.jsonl"))


PROGRAM = """
import sys
from mmfuse.verbs import predict as module
module.PART = 2
list(module.predict(sys.argv[1], sys.argv[2], threshold=0.0, batch_size=1, workers=0, out=sys.argv[3]))
"""


def test_processes_share_the_scenes_and_write_the_same_file(trained, folders, tmp_path, monkeypatch):
    run, program = trained(**SENSORS), tmp_path / "program.py"
    program.write_text(PROGRAM)
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    monkeypatch.setattr(module, "PART", 2)
    list(predict(run, folders, threshold=0.0, batch_size=1, workers=0, out=alone))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    words = [sys.executable, program, run.folder, folders, shared]
    both = [subprocess.Popen(words, env=os.environ | world | {"RANK": rank}) for rank in "01"]
    assert [process.wait(240) for process in both] == [0, 0]
    assert shared.read_bytes() == alone.read_bytes()
    assert len(lines(shared)) == 9


# ---- the command line


def test_each_class_has_a_threshold_of_its_own(trained, tmp_path, capsys):
    run, path = trained(x=Sensor(1)), write(tmp_path / "x.png")
    every = predict(run, {"x": path}, threshold=0.0)
    lowest = {name: every.scores[every.labels == k].median().item() for k, name in enumerate(("thing", "other"))}
    own = predict(run, {"x": path}, threshold=lowest)
    for k, limit in enumerate(lowest.values()):
        expected = every.scores[(every.labels == k) & (every.scores > limit)]
        assert 0 < len(expected) == (own.labels == k).sum()
    one = predict(run, {"x": path}, threshold={"other": 0.0})
    assert (one.labels == 1).sum() == (every.labels == 1).sum()
    assert (one.labels == 0).sum() == ((every.labels == 0) & (every.scores > 0.3)).sum()
    given = ["predict", str(run.folder), "--x", str(path), "--json"]
    assert main([*given, "--threshold", "best"]) == 2
    assert "none were chosen for" in capsys.readouterr().err
    save_detector(run.best, load(run.best), {"thresholds": lowest})
    assert run.thresholds == lowest
    assert main([*given, "--threshold", "best"]) == 0
    assert len(json.loads(capsys.readouterr().out)["objects"]) == len(own)
    with pytest.raises(SystemExit):
        main([*given, "--threshold", "bset"])
    assert "argument --threshold: invalid" in capsys.readouterr().err


def test_a_line_for_each_object(trained, folders, capsys):
    run = trained(**SENSORS)
    given = ["--rgb", str(folders / "rgb" / "0.png"), "--thermal", str(folders / "thermal" / "0.png")]
    assert main(["predict", str(run.folder), *given, "--threshold", "0", "--max-detections", "3"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert all(line.startswith(("0: thing 0.", "0: other 0.")) and " at " in line for line in out)
    assert main(["predict", str(run.folder), *given, "--threshold", "1"]) == 0
    assert capsys.readouterr().out == "0: nothing found\n"
    assert main(["predict", str(run.folder), *given, "--threshold", "0", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert set(json.loads(line)) == {"name", "objects"}
    assert set(json.loads(line)["objects"][0]) == {"box", "score", "class", "label"}


def test_what_became_of_many_scenes_is_told(trained, folders, tmp_path, capsys):
    run, out = trained(**SENSORS), tmp_path / "x.jsonl"
    assert main(["predict", str(run.folder), str(folders), "--threshold", "0", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{out}: 9 scenes, ")
    assert told.out.rstrip().endswith("rgb is missing in 1; thermal is missing in 1")
    assert "7.png: can't be" in told.err.splitlines()[-1]
    assert len(lines(out)) == 9


def test_mistakes_are_one_line(trained, folders, tmp_path, capsys):
    run = str(trained(**SENSORS).folder)
    a = str(folders / "rgb" / "0.png")
    broken = str(folders / "rgb" / "7.png")
    for words, message in (
        ([run], "no image given; give at least one of rgb, thermal"),
        ([run, "--rgb", a, "--rgb", a], f"--rgb: is given twice, as {a} and {a}; give each sensor once"),
        ([run, "--radar", a], "'radar' is not a known modality of this detector"),
        ([run, str(folders), "--rgb", a], "set: is no bag, so rgb can't be given beside it"),
        ([run, "--rgb", broken], "7.png: can't be"),
        ([run, "--rgb", a, "--out", str(tmp_path / "x.gif")], "its suffix is unknown"),
        ([str(tmp_path / "absent"), "--rgb", a], "absent: does not exist"),
    ):
        assert main(["predict", *words]) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1
        assert message in told[0]


# ---- pictures and videos


def size(path):
    with Image.open(path) as image:
        return image.size


def test_a_folder_of_pictures_has_one_of_each_scene_and_their_lines(trained, folders, tmp_path):
    detector = load(trained(**SENSORS).best)
    list(predict(detector, folders, threshold=0.0, max_detections=2, out=tmp_path / "found"))
    assert sorted(p.name for p in (tmp_path / "found").iterdir()) == [
        *(f"{i}.png" for i in range(9)),
        "detections.jsonl",
    ]
    assert len(lines(tmp_path / "found" / "detections.jsonl")) == 9
    sizes = [size(tmp_path / "found" / f"{i}.png") for i in range(9)]
    assert sizes[1] == (2 * 72 + 2, 96)
    assert sizes[4] == (96, 96)  # of the one sensor that is there
    assert not (tmp_path / "found.parts").exists()


def test_names_of_scenes_cannot_lead_out_of_the_folder(trained, tmp_path):
    detector = load(trained(rgb=Sensor(3)).best)
    image = np.zeros((64, 64, 3), np.uint8)
    names = ["../../a", "/etc/b", "sub/c.JPG", "10.50", "..", 'd"<x>', ""]
    list(predict(detector, [Scene({"rgb": image}, name=name) for name in names], out=tmp_path / "in" / "found"))
    written = sorted(p.relative_to(tmp_path / "in").as_posix() for p in tmp_path.rglob("*.png"))
    assert written == [
        f"found/{name}.png" for name in sorted(["a", "etc/b", "sub/c", "10.50", "0000000-004", "d_x_", "0000000-006"])
    ]  # fmt: skip


def test_a_picture_that_cannot_be_written_is_one_line(trained, tmp_path):
    detector = load(trained(rgb=Sensor(3)).best)
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "sub").write_text("in the way")
    scene = Scene({"rgb": np.zeros((64, 64, 3), np.uint8)}, name="sub/x")
    with pytest.raises(UserError, match=r"found/sub: lies in the way of .*found/sub/x.png"):
        list(predict(detector, [scene], out=tmp_path / "found"))
    with pytest.raises(UserError, match=r"found/sub/y.png"):
        predict(detector, scene, out=tmp_path / "found" / "sub" / "y.png")
    with pytest.raises(UserError, match=r"sub: is a file; give a folder for pictures"):
        list(predict(detector, [scene], out=tmp_path / "found" / "sub"))


def test_one_picture_is_of_one_scene(trained, folders, tmp_path):
    detector = load(trained(**SENSORS).best)
    image = {"rgb": folders / "rgb" / "0.png", "thermal": folders / "thermal" / "0.png"}
    found = predict(detector, image, out=tmp_path / "a.png", threshold=0.0)
    assert len(found)
    assert size(tmp_path / "a.png") == (2 * 64 + 2, 96)
    assert [p.name for p in tmp_path.glob("a.png*")] == ["a.png"]
    with pytest.raises(UserError, match=r"b.png: is one picture, but there are several scenes; give a folder"):
        next(predict(detector, folders, out=tmp_path / "b.png"))


def test_boxes_are_drawn_within_the_border(trained, tmp_path):
    run = trained(rgb=Sensor(3, border=(10, 7, 3, 5)))
    predict(run, {"rgb": write(tmp_path / "x.png", (128, 96), channels=3)}, out=tmp_path / "p.png", threshold=0.0)
    assert size(tmp_path / "p.png") == (128 - 13, 96 - 12)


def test_a_video_of_a_video(trained, tmp_path):
    av = pytest.importorskip("av")
    detector = load(trained(rgb=Sensor(3)).best)
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for n in range(7):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * n, np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
    found = list(predict(detector, tmp_path / "in.mkv", out=tmp_path / "out.mp4", threshold=1.0))
    assert len(found) == 7
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (64, 48, 5)
        grey = [float(frame.to_ndarray(format="gray")[:20].mean()) for frame in container.decode(stream)]
    assert np.allclose(grey, [30 * n for n in range(7)], atol=6)


def test_a_full_disk_names_the_file_and_leaves_nothing_half_written(trained, folders, tmp_path, monkeypatch):
    detector = load(trained(**SENSORS).best)
    out = tmp_path / "x.jsonl"
    out.write_text("good")
    work = predict(detector, folders, out=out)
    monkeypatch.setattr(
        "pathlib.Path.open", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(UserError, match=r"x.jsonl.parts/0000000: can't be written: No space left on device"):
        list(work)
    monkeypatch.undo()
    assert out.read_text() == "good"


# ---- positions


CAMERA = Calibration((128, 96), (100.0, 100.0, 63.5, 47.5))


def plates(path):
    """Depth in millimetres: a plate 2 m away before a wall at 6 m, and a hole without a measurement."""
    depth = np.full((96, 128), 6000, np.uint16)
    depth[30:60, 40:80] = 2000
    depth[:20, 100:] = 0
    Image.fromarray(depth).save(path)
    return path


def test_positions_are_told_where_depth_knows_them(trained, tmp_path, monkeypatch, capsys):
    depth = Sensor(1, "inverse_depth", calibration=CAMERA)
    run = trained(rgb=Sensor(3), depth=depth)
    image = {"rgb": write(tmp_path / "rgb.png", channels=3), "depth": plates(tmp_path / "depth.png")}
    boxes = torch.tensor([[38.0, 28, 82, 62], [104, 2, 124, 16]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), classes=("thing", "other"))
    monkeypatch.setattr("mmfuse.model.detector.Detector.look", lambda *a: [found])
    for encoding in ("inverse_depth", "depth_colours", "normals"):
        run = trained(rgb=Sensor(3), depth=dataclasses.replace(depth, encoding=encoding))
        views = load(run.best).sight.views(image)
        restored = views.restore([found])[0]
        scale = views.scales.item()
        monkeypatch.setattr(
            "mmfuse.model.detector.Detector.look", lambda *a, s=scale: [dataclasses.replace(found, boxes=boxes * s)]
        )
        (one,) = predict(load(run.best), [Scene(image)], positions=True)
        assert len(restored) == 2
        near, unknown = one.objects
        assert near["distance"] == pytest.approx(2.0, rel=0.02)
        assert near["centre"][2] == pytest.approx(2.0, abs=0.01)
        assert max(near["extent"]) == pytest.approx(0.8, rel=0.1)
        assert near["depth_pixels"] > 1000
        assert unknown == one.found.to_dicts()[1] | {"distance": None, "depth_pixels": 0}
    words = ["predict", str(run.folder), "--rgb", str(image["rgb"]), "--depth", str(image["depth"]), "--3d"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rgb: thing 0.90 at 38.0, 28.0, 82.0, 62.0, 2.0 m")
    assert lines[1].endswith(", distance unknown")
    assert main([*words, "--out", str(tmp_path / "p.png")]) == 0
    assert main(["predict", str(run.folder), "--rgb", str(image["rgb"]), "--3d"]) == 0
    assert all(line.endswith(", distance unknown") for line in capsys.readouterr().out.splitlines()[-2:])


def test_positions_need_depth_and_its_camera(trained, tmp_path):
    image = {"rgb": write(tmp_path / "rgb.png", channels=3), "depth": plates(tmp_path / "depth.png")}
    with pytest.raises(UserError, match=r"positions: need depth, which none of rgb measures; leave them out"):
        predict(trained(rgb=Sensor(3)), [Scene({"rgb": image["rgb"]})], positions=True)
    run = trained(rgb=Sensor(3), depth=Sensor(1, "inverse_depth"))
    with pytest.raises(
        UserError, match=r"depth: its camera isn't known, so depth gives no positions; give calibration"
    ):
        next(predict(run, [Scene(image)], positions=True, threshold=0.0))
    (one,) = predict(run, [Scene(image, {"depth": CAMERA})], positions=True, threshold=0.0)
    assert any(position.known for position in one.positions)


def test_a_frozen_sensor_of_a_stream_is_not_believed_and_a_disagreement_is_told(trained, tmp_path, capsys):
    run = trained(rgb=Sensor(3), thermal=Sensor(1))
    detector = load(run.best)
    detector.begin_doubt()
    detector.agreement.least.fill_(0.3)
    detector.agreement.clear.fill_(0.4)

    def frame(number):
        grey = np.zeros((128, 128), np.uint8)
        rng = np.random.default_rng(number)
        for _ in range(6):
            y, x, h, w = rng.integers((0, 0, 10, 10), (90, 90, 40, 40))
            grey[y : y + h, x : x + w] = rng.integers(80, 250)
        return grey

    shown = [(0, 0), (1, 1), (2, 1), (3, 1), (4, 4), (4, 4), (6, 5)]
    rig = [
        Scene({"rgb": np.stack([frame(a)] * 3, 2), "thermal": frame(b)}, name=str(i)) for i, (a, b) in enumerate(shown)
    ]
    for source in (rig, iter(rig)):
        found = [one.found for one in predict(detector, source, workers=0, batch_size=2)]
        assert [one.dropped for one in found] == [(), (), ("thermal",), ("thermal",), (), (), ()]
        assert [len(one.disagreeing) for one in found] == [0, 0, 2, 2, 0, 0, 2]
    without = detector.detect({"rgb": rig[2].images["rgb"]}, threshold=0.3)[0]
    assert torch.equal(found[2].boxes, without.boxes)
    (last,) = predict(detector, rig[-1:])
    assert last.to_dict()["disagreeing"] == ["rgb", "thermal"]

    save_detector(run.best, detector, {})
    for m in ("rgb", "thermal"):
        for scene in rig:
            (tmp_path / m).mkdir(exist_ok=True)
            Image.fromarray(scene.images[m]).save(tmp_path / m / f"{scene.name}.png")
    source = [word for m in ("rgb", "thermal") for word in (f"--{m}", str(tmp_path / m))]
    assert main(["predict", str(run.folder), *source, "--out", str(tmp_path / "found.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "thermal isn't believed in 2" in told
    assert "rgb and thermal show different scenes in 3" in told
