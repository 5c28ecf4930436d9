import json
import os

import numpy as np
import pytest

from mmfuse.errors import UserError
from mmfuse.model.build import create_detector
from mmfuse.sources.opening import scenes


def names(found):
    return [(s.name, sorted(s.images)) for s in found]


BOTH = ["rgb", "thermal"]


def test_files_folders_and_a_folder_of_folders(detector, tmp_path, write):
    for m in BOTH:
        write(tmp_path / m / "a.png")
        write(tmp_path / m / "b.png")
    parts = {m: tmp_path / m for m in BOTH}
    assert names(scenes(detector, {m: path / "a.png" for m, path in parts.items()})) == [("a", BOTH)]
    assert names(scenes(detector, parts)) == names(scenes(detector, tmp_path)) == [("a", BOTH), ("b", BOTH)]
    assert names(scenes(detector, {"rgb": tmp_path / "rgb"})) == [("a", ["rgb"]), ("b", ["rgb"])]
    alone = create_detector("d-4", {"rgb": 3}, 1)
    assert names(scenes(alone, tmp_path / "thermal")) == [("a", ["rgb"]), ("b", ["rgb"])]
    assert names(scenes(alone, str(tmp_path / "rgb" / "a.png"))) == [("a", ["rgb"])]


def test_cards_and_coco_files(detector, paired_set, tmp_path):
    assert len(scenes(detector, paired_set, split="val")) == 4
    (tmp_path / "moved.yaml").write_text(paired_set.read_text())
    moved = scenes(detector, tmp_path / "moved.yaml", root=str(paired_set.parent))
    assert moved[0].images["rgb"].exists()
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": 1, "modalities": {"rgb": "a.png"}}]}))
    assert names(scenes(detector, path)) == [("a.png", ["rgb"])]


def test_videos(detector, tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode())
    assert len(list(scenes(detector, {"rgb": tmp_path / "a.mkv", "thermal": tmp_path / "a.mkv"}))) == 3


def test_what_cannot_be_opened_is_one_line(detector, tmp_path, write):
    write(tmp_path / "rgb" / "a.png")
    (tmp_path / "x.txt").write_text("a")
    (tmp_path / "x.bag").write_text("a")
    os.mkfifo(tmp_path / "pipe.png")
    for source, message in (
        ({"radar": "a.png"}, r"'radar' is not a known modality of this detector; use one of rgb, thermal"),
        ({}, "no image given; give at least one of rgb, thermal"),
        ({"rgb": tmp_path / "absent.png"}, r"rgb: .*absent.png does not exist; check the path"),
        ({"rgb": tmp_path / "x.txt"}, r"rgb: .*x.txt is no image, video or folder that is known here"),
        (
            {"rgb": tmp_path / "rgb", "thermal": tmp_path / "rgb" / "a.png"},
            "rgb is a folder, thermal is a file; give all",
        ),
        (tmp_path / "absent", "absent: does not exist; check the path"),
        (tmp_path / "rgb", r"rgb: isn't a card, a COCO file, a bag or a folder of rgb, thermal; give --rgb … and --th"),
        (tmp_path / "x.bag", r"x.bag: name the topic of each sensor, of rgb, thermal, such as --rgb /image"),
        (tmp_path / "absent.yaml", "absent.yaml"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            scenes(detector, source)
        assert "\n" not in str(caught.value)
    (scene,) = scenes(detector, {"rgb": tmp_path / "pipe.png"})
    with pytest.raises(UserError, match=r"pipe.png: can't be read: Not a regular file"):
        detector.detect(scene)
