import pytest

from mmfuse.errors import UserError
from mmfuse.sources.folders import scenes_of_folders


def names_of(scenes):
    return [(s.name, sorted(s.images)) for s in scenes]


def test_files_are_paired_by_name_and_what_lacks_a_partner_lacks_a_sensor(tmp_path, write):
    for name, sensors in (("a", "rt"), ("b/c", "rt"), ("d", "t"), ("e", "r")):
        for s in sensors:
            write(tmp_path / s / f"{name}.{'jpg' if s == 'r' else 'png'}")
    (tmp_path / "r" / "notes.txt").write_text("no image")
    write(tmp_path / "r" / ".thumbnails" / "z.png")
    scenes = scenes_of_folders({"rgb": tmp_path / "r", "thermal": tmp_path / "t"})
    both = ["rgb", "thermal"]
    assert names_of(scenes) == [("a", both), ("b/c", both), ("d", ["thermal"]), ("e", ["rgb"])]
    assert scenes[1].images["rgb"] == tmp_path / "r" / "b" / "c.jpg"


def test_files_are_paired_by_time(tmp_path, write):
    for time in ("10.00", "10.10", "10.20", "11.00"):
        write(tmp_path / "r" / f"{time}.png")
    for time in ("10.02", "10.17"):
        write(tmp_path / "t" / f"{time}.png")
    scenes = scenes_of_folders({"rgb": tmp_path / "r", "thermal": tmp_path / "t"}, 0.05)
    assert [(s.name, s.images["thermal"].stem if "thermal" in s.images else None) for s in scenes] == [
        ("10.00", "10.02"), ("10.10", None), ("10.20", "10.17"), ("11.00", None)
    ]  # fmt: skip
    write(tmp_path / "t" / "left.png")
    with pytest.raises(UserError, match=r"left.png: its name is not a time"):
        scenes_of_folders({"rgb": tmp_path / "r", "thermal": tmp_path / "t"}, 0.05)


def test_folders_that_do_not_fit_are_one_line(tmp_path, write):
    write(tmp_path / "r" / "a_rgb.png")
    write(tmp_path / "t" / "a_ir.png")
    (tmp_path / "empty").mkdir()
    r, t = tmp_path / "r", tmp_path / "t"
    with pytest.raises(
        UserError, match=r"rgb: no file in .*/r has the name of another sensor's \('a_rgb' and 'a_ir'\)"
    ):
        scenes_of_folders({"rgb": r, "thermal": t})
    with pytest.raises(UserError, match=r"thermal: .*/empty holds no image \(.bin, .*\); check the path"):
        scenes_of_folders({"rgb": r, "thermal": tmp_path / "empty"})
    write(tmp_path / "r" / "a_rgb.jpg")
    with pytest.raises(UserError, match=r"rgb: .*a_rgb.jpg and .*a_rgb.png have one name; keep one"):
        scenes_of_folders({"rgb": r})
