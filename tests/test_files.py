"""Files and folders that are written whole or not at all, whatever happens in between."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmfuse import files
from mmfuse.convert.archives import unpack
from mmfuse.data.annotations.calibration_files import read_calibration
from mmfuse.data.annotations.layout import image_size
from mmfuse.errors import UserError
from mmfuse.files import new_folder, read_regular, resolved, sole_writer, write_whole
from mmfuse.images.decode import read_image
from mmfuse.model import checkpoint
from mmfuse.model.effdet_weights import read_checkpoint
from mmfuse.sensor import Sensor
from mmfuse.strict_yaml import read_yaml

FULL = OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "new" / "last.json"
    for content in (b"longer than before", b"short"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert names(tmp_path) == ["new", "new/last.json"]


def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_failed_write_leaves_the_old_file_alone_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = tmp_path / "last.json"
    write_whole(path, b"old")

    def fail(*_):  # the disk, when something lies there already
        assert names(tmp_path) != ["last.json"]
        raise error

    if step == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        opened = Path.open

        def open_full(self, mode):
            with opened(self, mode) as file:
                file.write(b"ne")
            fail()

        monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        write_whole(path, b"new")
    monkeypatch.undo()
    if error is FULL:
        message = f"{path}: can't be written: No space left on device; check the path and the space on the disk"
        assert str(raised.value) == message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["last.json"]


def test_the_fix_is_the_caller_s(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"file: lies in the way of .*/file/x; give another folder$"):
        write_whole(tmp_path / "file" / "x", b"", fix="give another folder")


def test_links_are_not_followed(tmp_path, monkeypatch):
    """One that lies where the file goes is replaced; one that lies where the partial file goes stops the write."""
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    (tmp_path / "x").symlink_to(other)
    write_whole(tmp_path / "x", b"new")
    assert not (tmp_path / "x").is_symlink()
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "guessed")
    (tmp_path / ".guessed.partial").symlink_to(other)
    with pytest.raises(UserError, match=r"\.guessed\.partial: lies in the way of .*/x; check the path"):
        write_whole(tmp_path / "x", b"newer")
    assert (other.read_bytes(), (tmp_path / "x").read_bytes()) == (b"mine", b"new")


def test_no_two_writes_share_a_partial_file(tmp_path, monkeypatch):
    seen = set()
    monkeypatch.setattr(Path, "replace", lambda self, path: seen.add(self.name))
    for _ in range(20):
        write_whole(tmp_path / "x", b"")
    assert len(seen) == 20
    assert all(name.startswith(".") and name.endswith(".partial") for name in seen)


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_when_all_of_it_is_there(tmp_path, there):
    folder = tmp_path / "deep" / "set"
    if there:
        folder.mkdir(parents=True)
    with new_folder(folder) as partial:
        (partial / "a").write_bytes(b"a")
        assert not there or not any(folder.iterdir())
        assert there == folder.exists()
    assert names(tmp_path) == ["deep", "deep/set", "deep/set/a"]
    mode = (tmp_path / "deep").stat().st_mode
    assert folder.stat().st_mode == mode


def fail(folder, error):
    (folder / "a").mkdir()
    raise error


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (UserError("x"), UserError, "^x$"),
        (
            FULL,
            UserError,
            "{name}: can't be written: No space left on device; check the path and the space on the disk",
        ),
        (FileNotFoundError(2, "No such file", "a.png"), FileNotFoundError, "a.png"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_folder_that_fails_leaves_nothing(tmp_path, error, kind, told):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "deep" / "er" / "set", tmp_path / "empty"):
        with pytest.raises(kind, match=told.replace("{name}", folder.name)), new_folder(folder) as partial:
            fail(partial, error)
        assert names(tmp_path) == ["empty"]


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for name in ("set", "link", "set/mine"):
        with pytest.raises(UserError, match="is not an empty folder; give a new one"), new_folder(tmp_path / name):
            pass
    assert names(tmp_path) == ["link", "set", "set/mine"]


def test_a_folder_may_be_a_link_to_an_empty_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with new_folder(tmp_path / "link") as partial:
        (partial / "a").write_bytes(b"")
    assert os.listdir(tmp_path / "disk") == ["a"]


def test_only_a_regular_file_is_read(tmp_path):
    """A pipe would be waited for without an end, so it must not be opened the plain way."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "good").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "good") == read_regular(tmp_path / "file") == b"content"
    for name, message in (
        ("pipe", "Not a regular"),
        ("link", "Not a regular"),
        ("", "Is a directory"),
        ("no", "No such"),
    ):
        with pytest.raises(OSError, match=message) as raised:
            read_regular(tmp_path / name)
        assert raised.value.filename == str(tmp_path / name)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "read",
    [
        read_yaml,
        lambda path: unpack(path, path.parent / "out"),
        lambda path: read_image(path, Sensor(1)),
        lambda path: read_image(path.rename(path.with_suffix(".npy")), Sensor(1, "metres", register="rig")),
        image_size,
        lambda path: read_calibration(path, "kitti", "P0"),
        checkpoint.read,
        read_checkpoint,
        lambda path: read_checkpoint(path.rename(path.with_suffix(".safetensors"))),
    ],
)
def test_no_reader_waits_for_a_pipe(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe"):
        read(tmp_path / "pipe")


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    """Another process is kept out while one writes, and no longer than that lives, however it ends.

    What it forked, such as the workers of a loader, lives on for a while.
    """
    program = (
        "import os, sys, time; from pathlib import Path; from mmfuse.files import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])):\n"
        "    if os.fork(): time.sleep(600)\n"
        "    else: print('held', flush=True); sys.stdin.read(); os._exit(0)"
    )
    folder = tmp_path / "run"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", program, folder], text=True, **pipes)
    try:
        assert holder.stdout.readline() == "held\n"
        told = r"run: another process is writing there; wait for it, or choose another"
        with pytest.raises(UserError, match=told), sole_writer(folder):
            pytest.fail("two at once")
    finally:
        holder.kill()
        holder.wait()
    with sole_writer(folder):
        (folder / "file").write_text("")
    holder.communicate()
    with sole_writer(folder):
        pass
    assert [p.name for p in folder.iterdir()] == ["file"]


def test_a_writer_leaves_no_empty_folder(tmp_path):
    with pytest.raises(RuntimeError), sole_writer(tmp_path / "run"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    told = r"file: can't be written: File exists; check the path"
    with pytest.raises(UserError, match=told), sole_writer(tmp_path / "file"):
        pass


def test_links_that_lead_round_are_one_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for path in (tmp_path / "a" / "c.yaml", Path("a\0b")):
        with pytest.raises(UserError, match=r"is not a path that can be followed|symbolic links"):
            read_yaml(resolved(path))
    assert resolved(tmp_path / "none") == tmp_path.resolve() / "none"
