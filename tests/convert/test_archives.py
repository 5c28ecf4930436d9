import gzip
import io
import os
import random
import shutil
import stat
import struct
import tarfile
import zipfile
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mmfuse.convert import archives
from mmfuse.convert.archives import unpack
from mmfuse.errors import UserError

CONTENT = {"set/rgb/1.png": b"\x89PNG" * 900, "set/labels.json": b"{}", "set/empty.txt": b""}
MODES = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz"}


def tar_entry(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_tar(path, entries, mode="w"):
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as file:
        for info, content in entries:
            file.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def zip_entry(name, form):
    info = zipfile.ZipInfo(name)
    info.external_attr = (form | 0o644) << 16
    return info


def write(path, content=None):
    content = CONTENT if content is None else content
    if path.suffix == ".zip":
        return write_zip(path, content.items())
    return write_tar(path, [tar_entry(*item) for item in content.items()], MODES[path.name])


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive, folder, *parts):
    """Asserts that unpacking fails in one line with these parts, and leaves the disk as it was."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError) as raised:
        unpack(archive, folder)
    assert all(part in str(raised.value) for part in parts), raised.value
    assert "\n" not in str(raised.value)
    assert sorted(folder.parent.rglob("*")) == before
    return str(raised.value)


@pytest.mark.parametrize("name", ["a.zip", *MODES])
def test_files_come_out_as_they_went_in(tmp_path, name):
    assert unpack(write(tmp_path / name), tmp_path / "new" / "out") == 3
    assert files_of(tmp_path / "new" / "out") == CONTENT
    assert os.listdir(tmp_path / "new") == ["out"]


def test_the_kind_is_told_by_the_content_not_the_name(tmp_path):
    inner = write(tmp_path / "a.zip").read_bytes()
    outer = write_tar(tmp_path / "b.zip", [tar_entry("inner.zip", inner)])  # ends with a zip's last bytes
    unpack(outer, tmp_path / "out")
    assert files_of(tmp_path / "out") == {"inner.zip": inner}


def test_an_empty_folder_is_filled_and_a_full_one_left_alone(tmp_path):
    archive = write(tmp_path / "a.tar")
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    (tmp_path / "out" / "set" / "labels.json").write_text("mine")
    assert "give a new one" in refused(archive, tmp_path / "out", str(tmp_path / "out"))
    assert (tmp_path / "out" / "set" / "labels.json").read_text() == "mine"
    refused(archive, tmp_path / "a.tar", "a.tar is not an empty folder")


def test_folders_and_links_within_are_kept(tmp_path):
    entries = [
        tar_entry("./", type=tarfile.DIRTYPE),
        tar_entry("a/b/1.txt", b"one"),
        tar_entry("a/", type=tarfile.DIRTYPE),
        tar_entry("a/", type=tarfile.DIRTYPE),
        tar_entry("none/", type=tarfile.DIRTYPE),
        tar_entry("a/near", type=tarfile.SYMTYPE, linkname="b/1.txt"),
        tar_entry("a/b/up", type=tarfile.SYMTYPE, linkname="../../a/./b"),
        tar_entry("same.txt", type=tarfile.LNKTYPE, linkname="a/b/1.txt"),
    ]
    out = tmp_path / "out"
    assert unpack(write_tar(tmp_path / "a.tar", entries), out) == 2
    assert (out / "a/near").is_symlink()
    assert (out / "a/near").read_text() == (out / "same.txt").read_text() == "one"
    assert (out / "a/b/up").resolve() == (out / "a/b").resolve()
    assert (out / "none").is_dir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a/1.txt", "one")
        file.writestr(zip_entry("a/link", stat.S_IFLNK), "1.txt")
        file.writestr("b\\2.txt", "two")  # as some write on Windows
        file.writestr("c/", "")
    assert unpack(tmp_path / "a.zip", tmp_path / "zip") == 2
    assert os.readlink(tmp_path / "zip/a/link") == "1.txt"
    assert (tmp_path / "zip/b/2.txt").read_text() == "two"
    assert (tmp_path / "zip/c").is_dir()


def test_permissions_and_owners_are_not_taken_over(tmp_path):
    mode = 0o4777
    unpack(write_tar(tmp_path / "a.tar", [tar_entry("x", b"x", mode=mode, uid=1, gid=1)]), tmp_path / "out")
    assert not (tmp_path / "out" / "x").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


GOOD = tar_entry("good.txt", b"good")
LEAVES = ["../x", "a/../../x", "a/../x", "/x", "\\x", "..\\x", "a\\..\\..\\x", "C:x", "C:/x"]


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_member_may_not_leave_the_folder(tmp_path, name, kind):
    if kind == "tar":
        archive = write_tar(tmp_path / "a.tar", [GOOD, tar_entry(name, b"bad")])
    else:
        archive = write_zip(tmp_path / "a.zip", [("good.txt", b"good"), (name, b"bad")])
    refused(archive, tmp_path / "in" / "out", f"{name!r} leads out of the folder", archive.name)


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "a/../../x", "b/../../../x", "..\\..\\x", "own/..", ".."])
def test_a_link_may_not_point_out(tmp_path, target):
    entries = [GOOD, tar_entry("own", type=tarfile.SYMTYPE, linkname="."), tar_entry("l", linkname=target)]
    entries[2][0].type = tarfile.SYMTYPE
    refused(write_tar(tmp_path / "a.tar", entries), tmp_path / "out", "'l' is a link to", "leads out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("good.txt", "good")
        file.writestr(zip_entry("l", stat.S_IFLNK), target)
    refused(tmp_path / "a.zip", tmp_path / "out", "'l' is a link to", "leads out")
    entries[2] = tar_entry("l", type=tarfile.LNKTYPE, linkname=target)
    refused(write_tar(tmp_path / "a.tar", entries), tmp_path / "out", "'l' is a hard link to", "no file before it")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([tar_entry("l", type=tarfile.SYMTYPE, linkname="."), tar_entry("l/m", b"x")], "'l/m' lies below 'l'"),
        ([tar_entry("l/m", b"x"), tar_entry("l", type=tarfile.SYMTYPE, linkname=".")], "'l/m' lies below 'l'"),
        ([tar_entry("l", type=tarfile.SYMTYPE, linkname="good.txt"), tar_entry("l", b"x")], "'l' stands twice"),
        ([tar_entry("good.txt/m", b"x")], "'good.txt/m' lies below 'good.txt'"),
        ([tar_entry("./good.txt", b"x")], "'./good.txt' stands twice"),
        ([tar_entry("d", type=tarfile.CHRTYPE)], "'d' is a device"),
        ([tar_entry("d", type=tarfile.BLKTYPE)], "'d' is a device"),
        ([tar_entry("d", type=tarfile.FIFOTYPE)], "'d' is a device"),
        ([tar_entry(".", b"x")], "'.' has no name"),
        (
            [
                tar_entry("d/l", type=tarfile.SYMTYPE, linkname="../good.txt"),
                tar_entry("h", type=tarfile.LNKTYPE, linkname="d/l"),
            ],
            "'h' is a hard link to 'd/l', which is no file",
        ),
        ([tar_entry("h", type=tarfile.LNKTYPE, linkname="later"), tar_entry("later", b"x")], "no file before it"),
    ],
)
def test_a_member_that_is_not_plain_is_refused(tmp_path, entries, message):
    refused(write_tar(tmp_path / "a.tar", [GOOD, *entries]), tmp_path / "out", message, "a.tar")


def test_a_special_file_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(zip_entry("d", stat.S_IFIFO), "")
    refused(tmp_path / "a.zip", tmp_path / "out", "'d' is a device")


def test_an_encrypted_zip_is_refused(tmp_path):
    data = bytearray(write_zip(tmp_path / "a.zip", [("x.txt", b"secret")]).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    refused(tmp_path / "a.zip", tmp_path / "out", "'x.txt' is encrypted")


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_a_bomb_is_refused_and_what_packs_well_is_not(tmp_path, monkeypatch, name):
    archive = write(tmp_path / name, {"zeros": bytes(3_000_000)})
    monkeypatch.setattr(archives, "_SMALL", 2_000_000)
    refused(archive, tmp_path / "out", "more than 200 times its", "decompression bomb")
    monkeypatch.setattr(archives, "_SMALL", 3_000_000)
    assert unpack(archive, tmp_path / "out") == 1


def test_a_bomb_is_refused_by_what_it_declares(tmp_path):
    """Ten terabytes are declared after a member that is whole; nothing so large is read or written."""
    good, content = GOOD
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(good.tobuf() + content.ljust(512, b"\0") + tar_entry("big", size=10**13)[0].tobuf())
    refused(tmp_path / "a.tar", tmp_path / "out", "decompression bomb")


def test_a_header_that_is_a_bomb_is_not_read(tmp_path):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2 << 20
    (tmp_path / "a.tar").write_bytes(header.tobuf() + bytes(2 << 20))
    refused(tmp_path / "a.tar", tmp_path / "out", "a header of 2097152 bytes")


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_files_must_fit_the_disk_with_a_tenth_to_spare(tmp_path, monkeypatch, name):
    """1,000 files of a byte take 1,000 blocks of 4,096 bytes, and as many for their folder entries."""
    archive = write(tmp_path / name, {f"{i}": b"x" for i in range(1000)})
    needed = 2 * 4096 * 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed / 0.9 - 100))
    refused(archive, tmp_path / "out", "its files take more than", "make room")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed / 0.9 + 100))
    assert unpack(archive, tmp_path / "out") == 1000


@pytest.mark.parametrize("name", ["a.zip", *MODES])
def test_an_archive_cut_off_anywhere_is_refused(tmp_path, name):
    noise = random.Random(0)
    whole = write(tmp_path / name, {f"{i}.bin": noise.randbytes(700) for i in range(4)}).read_bytes()
    end = 4 * (512 + 1024) if name == "a.tar" else len(whole)  # a plain tar ends where its zeros begin
    for length in {*range(0, end, 97), *range(512, end, 512), end - 1}:
        (tmp_path / name).write_bytes(whole[:length])
        refused(tmp_path / name, tmp_path / "out", name)


@pytest.mark.parametrize("name", ["a.zip", *MODES])
def test_a_changed_archive_is_refused_or_unpacked_and_never_a_traceback(tmp_path, name):
    noise = random.Random(0)
    whole = write(tmp_path / name, {f"{i}.bin": noise.randbytes(300) for i in range(4)}).read_bytes()
    for _ in range(150):
        changed = bytearray(whole)
        for _ in range(noise.choice((1, 4, 40))):
            changed[noise.randrange(len(changed))] = noise.randrange(256)
        (tmp_path / name).write_bytes(changed)
        with suppress(UserError):
            unpack(tmp_path / name, tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_a_changed_byte_of_an_image_is_found(tmp_path, name):
    content = random.Random(0).randbytes(5000)
    whole = bytearray(write(tmp_path / name, {"1.png": content}).read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / name).write_bytes(whole)
    refused(tmp_path / name, tmp_path / "out", "is cut off or damaged", "get it anew")


def test_a_tar_that_goes_on_after_its_end_is_refused(tmp_path):
    one, two = (write_tar(tmp_path / n, [tar_entry(n, b"x")]).read_bytes() for n in ("one", "two"))
    (tmp_path / "a.tar").write_bytes(one + two)
    refused(tmp_path / "a.tar", tmp_path / "out", "is cut off or damaged")
    broken = bytearray(write_tar(tmp_path / "b.tar", [tar_entry("one", b"x"), tar_entry("two", b"x")]).read_bytes())
    broken[1024 + 150] ^= 1  # in the checksum of the second header
    (tmp_path / "b.tar").write_bytes(broken)
    refused(tmp_path / "b.tar", tmp_path / "out", "is cut off or damaged")


def test_a_tar_s_padding_has_an_end(tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "a.tar", [GOOD])
    with archive.open("ab") as file:
        file.write(bytes(30_000))
    unpack(archive, tmp_path / "out")
    monkeypatch.setattr(archives, "_MOST_PADDING", 30_000)
    refused(archive, tmp_path / "other", "is no end")


def test_headers_that_go_deep_are_refused(tmp_path):
    header = tarfile.TarInfo("././@PaxHeader")
    header.type = tarfile.XHDTYPE
    (tmp_path / "a.tar").write_bytes(header.tobuf() * 3000)
    refused(tmp_path / "a.tar", tmp_path / "out", "is cut off or damaged")


def test_a_zip_that_says_more_than_it_has_is_refused(tmp_path):
    info = zipfile.ZipInfo("x.txt")
    info.extra = struct.pack("<HHQ", 1, 8, 2**64 - 1)  # the place of its content, where the directory says so
    whole = write_zip(tmp_path / "a.zip", [(info, b"content")]).read_bytes()
    directory = whole.index(b"PK\1\2")
    for place, value in ((24, struct.pack("<I", 8)), (42, b"\xff" * 4)):
        changed = bytearray(whole)
        changed[directory + place : directory + place + 4] = value
        (tmp_path / "a.zip").write_bytes(changed)
        refused(tmp_path / "a.zip", tmp_path / "out", "is cut off or damaged")


def test_a_size_below_zero_does_not_go_round_for_ever(tmp_path):
    info = tarfile.TarInfo("x")
    info.size = -1024
    data = tarfile.TarInfo("y").tobuf() + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(data)
    refused(tmp_path / "a.tar", tmp_path / "out", "'x' has -1024 bytes")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is not a zip or tar"), (b"text" * 500, "is not a zip or tar"), (b"PK\5\6" + bytes(18), "holds no file")],
)
def test_what_is_no_archive_is_named(tmp_path, content, message):
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", tmp_path / "out", "a.zip: ", message)


def test_one_compressed_file_is_no_archive(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"text" * 500))
    refused(tmp_path / "a.gz", tmp_path / "out", "is not a zip or tar archive")


def test_paths_that_cannot_be_used_are_named(tmp_path):
    refused(tmp_path / "none.zip", tmp_path / "out", "none.zip: No such file")
    archive = write(tmp_path / "a.tar")
    refused(archive, archive / "out", "a.tar")
    refused(write(tmp_path / "a.zip", {"n" * 300: b"x"}), tmp_path / "out", "File name too long")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize(("name", "kind"), [("a.zip", zipfile.ZipFile), ("a.tar.gz", tarfile.TarFile)])
def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch, error, name, kind):
    archive = write(tmp_path / name)
    extract = kind.extract

    def failing(file, member, folder, **options):
        if str(getattr(member, "filename", getattr(member, "name", ""))).endswith("labels.json"):
            assert (folder / "set" / "rgb" / "1.png").exists()
            assert not (tmp_path / "new" / "out").exists()
            raise error
        return extract(file, member, folder, **options)

    monkeypatch.setattr(kind, "extract", failing)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        unpack(archive, tmp_path / "new" / "out")
    assert ("No space left on device; check the path and the space" in str(raised.value)) == isinstance(error, OSError)
    assert os.listdir(tmp_path) == [name]


def test_there_is_a_progress_bar(tmp_path, capsys):
    unpack(write(tmp_path / "a.tar"), tmp_path / "out")
    assert "unpacking: 100%" in capsys.readouterr().err
