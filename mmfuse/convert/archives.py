"""Unpacks a dataset's archive, whole or not at all, and nothing outside the folder that is asked for."""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from tqdm import tqdm

from mmfuse.errors import UserError
from mmfuse.files import new_folder, open_regular

LARGEST_RATIO = 200
"""How many times larger than the archive its files may be, if they are more than 100 MB."""
SHARE_OF_DISK = 0.9
"""How much of the free disk space the files may take."""

_SMALL = 100_000_000
_CHUNK = 1 << 20
_BLOCK = 4096
_MOST_PADDING = 1 << 26
_DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    RecursionError,
)


@dataclass(frozen=True)
class _Member:
    """One entry of an archive: its `parts` below the folder, its `target` as written if it is a link."""

    name: str
    parts: tuple[str, ...]
    kind: Literal["file", "folder", "link", "hard link"]
    size: int
    target: str
    source: Any


class _Archive(ABC):
    """An open archive."""

    @abstractmethod
    def members(self) -> Iterator[_Member]:
        """Yields what the archive declares, without writing anything."""

    @abstractmethod
    def extract(self, member: _Member, folder: Path) -> None:
        """Writes one member below the folder."""


def unpack(archive: str | Path, folder: str | Path) -> int:
    """Unpacks a zip or tar archive (plain, gzip, bzip2 or xz) into a new or empty folder; returns the number of files.

    All members are looked at before the first is written. The files appear under `folder` only when all of them are
    there and their checksums agree; until then, they lie in a hidden folder beside it, which is removed on any failure.
    Links within the folder are kept; owners, permissions and times are not.

    Python's own extraction does the writing, tarfile's by its filter for data. What it lets through or mends in
    silence (a way out by links below links, names cut to fit, one file over another) is refused before.

    Raises:
        UserError: the folder holds something; the file is no such archive, is cut off or damaged; a member is encrypted
            or neither file, folder nor link, stands twice, leaves the folder (by an absolute path, by `..` or by a
            link) or lies below something that isn't a folder; or its files are more than 100 MB and 200 times the
            archive's size, or take more than 90 % of the free disk space.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with new_folder(folder) as partial, _open(archive) as opened:
            members = _checked(opened, archive, partial)
            with tqdm(total=sum(m.size for m in members), desc="unpacking", unit="B", unit_scale=True) as bar:
                for member in members:
                    opened.extract(member, partial)
                    bar.update(member.size)
    except UserError:
        raise
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise _damaged(archive, error) from None
        place = error.filename2 or error.filename or folder
        raise UserError(f"{place}: {error.strerror}; check the path and the disk, then unpack again") from None
    except _DAMAGED as error:
        raise _damaged(archive, error) from None
    return sum(member.kind in ("file", "hard link") for member in members)


def _damaged(archive: Path, error: Exception) -> UserError:
    words = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{archive}: is cut off or damaged: {words}; get it anew")


def _checked(opened: _Archive, archive: Path, folder: Path) -> list[_Member]:
    """Returns the members; raises at the first that may not be unpacked."""
    compressed = archive.stat().st_size
    room = int(shutil.disk_usage(folder).free * SHARE_OF_DISK)
    found: dict[tuple[str, ...], _Member] = {}
    size = on_disk = 0
    for member in opened.members():
        if problem := _problem(member, found):
            raise UserError(f"{archive}: {member.name!r} {problem}")
        found[member.parts] = member
        size += member.size
        on_disk += -(-member.size // _BLOCK) * _BLOCK + _BLOCK
        if size > max(_SMALL, LARGEST_RATIO * compressed):
            ratio = f"its files are more than {LARGEST_RATIO} times its {compressed / 1e6:.1f} MB"
            raise UserError(f"{archive}: {ratio}, as those of a decompression bomb; unpack it by hand if you trust it")
        if on_disk > room:
            free = f"of the {room / 1e9:.1f} GB that may be used on {folder.parent}"
            raise UserError(f"{archive}: its files take more than {free}; make room or give another disk with --out")
    if not any(member.kind == "file" for member in found.values()):
        raise UserError(f"{archive}: holds no file; get it anew")
    for parts, member in found.items():
        for length in range(1, len(parts)):
            above_it = found.get(parts[:length])
            if above_it is not None and above_it.kind != "folder":
                fix = "which is no folder; pack the files anew"
                raise UserError(f"{archive}: {member.name!r} lies below {above_it.name!r}, {fix}")
    return list(found.values())


def _problem(member: _Member, found: dict[tuple[str, ...], _Member]) -> str:
    """Returns what is wrong with a member, empty if nothing is.

    No member lies below a link, and only a link's first steps lead up: so where a link points is told by words alone.
    """
    leads_out = "leads out of the folder; unpack none of it, and ask where the archive comes from"
    other = found.get(member.parts)
    if member.name.startswith(("/", "\\")) or member.name[1:2] == ":" or ".." in member.parts:
        return leads_out
    if not member.parts and member.kind != "folder":
        return "has no name; pack the files anew"
    if other is not None and not other.kind == member.kind == "folder":
        return "stands twice; pack the files anew"
    if member.kind == "link":
        steps = _steps(member.target)
        up = next((i for i, step in enumerate(steps) if step != ".."), len(steps))
        if member.target.startswith(("/", "\\")) or up >= len(member.parts) or ".." in steps[up:]:
            return f"is a link to {member.target!r}, which {leads_out}"
    if member.kind == "hard link":
        source = found.get(_steps(member.target))
        if source is None or source.kind not in ("file", "hard link"):
            return f"is a hard link to {member.target!r}, which is no file before it; pack the files anew"
    return ""


def _steps(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


@contextmanager
def _open(path: Path) -> Iterator[_Archive]:
    """Opens an archive by its first bytes."""
    with open_regular(path) as raw:
        head = raw.read(512)
        raw.seek(0)
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            with zipfile.ZipFile(raw) as file:
                yield _Zip(file, path)
            return
        decompress = next((opener for magic, opener in _DECOMPRESSORS.items() if head.startswith(magic)), None)
        with decompress(raw) if decompress else nullcontext(raw) as plain:
            if plain.read(512)[257:262] != b"ustar":
                raise UserError(f"{path}: is not a zip or tar archive (plain, gzip, bzip2 or xz); give one")
            plain.seek(0)
            yield _Tar(_Bounded(plain), path, raw)


class _Zip(_Archive):
    def __init__(self, file: zipfile.ZipFile, path: Path) -> None:
        self.file = file
        self.path = path

    def members(self) -> Iterator[_Member]:
        for info in self.file.infolist():
            if info.flag_bits & 1:
                raise UserError(f"{self.path}: {info.filename!r} is encrypted; unpack it by hand with its password")
            form, parts = stat.S_IFMT(info.external_attr >> 16), _steps(info.filename)
            if form == stat.S_IFLNK and info.file_size <= _BLOCK:
                yield _Member(info.filename, parts, "link", 0, os.fsdecode(self.file.read(info)), info)
            elif form not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _special(self.path, info.filename)
            elif info.is_dir():
                yield _Member(info.filename, parts, "folder", 0, "", info)
            else:
                yield _Member(info.filename, parts, "file", info.file_size, "", info)

    def extract(self, member: _Member, folder: Path) -> None:
        if member.kind == "link":  # zipfile would write its target as a text
            path = folder.joinpath(*member.parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(member.target)
        else:
            member.source.filename = "/".join(member.parts) + ("/" if member.kind == "folder" else "")
            path = Path(self.file.extract(member.source, folder))
            if member.kind == "file" and path.stat().st_size != member.size:
                raise EOFError(f"{member.name!r} is shorter than it says")


class _Bounded:
    """A decompressed tar of which no more than 1 MB is read at once: a header that is longer is a bomb."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        return self.stream.seek(position)

    def tell(self) -> int:
        return self.stream.tell()


_TAR_KINDS: dict[Callable[[tarfile.TarInfo], bool], Literal["file", "folder", "link", "hard link"]] = {
    tarfile.TarInfo.isreg: "file",
    tarfile.TarInfo.isdir: "folder",
    tarfile.TarInfo.issym: "link",
    tarfile.TarInfo.islnk: "hard link",
}


class _Tar(_Archive):
    def __init__(self, stream: _Bounded, path: Path, raw: IO[bytes]) -> None:
        self.file = tarfile.open(fileobj=stream, mode="r:", errorlevel=2)  # type: ignore[call-overload]  # noqa: SIM115
        self.stream = stream
        self.path = path
        self.raw = raw

    def members(self) -> Iterator[_Member]:
        with tqdm(total=self.path.stat().st_size, desc="looking through it", unit="B", unit_scale=True) as bar:
            for info in self.file:
                bar.update(self.raw.tell() - bar.n)
                if info.size < 0:
                    raise tarfile.ReadError(f"{info.name!r} has {info.size} bytes")
                kind = next((kind for told, kind in _TAR_KINDS.items() if told(info)), None)
                if kind is None:
                    raise _special(self.path, info.name)
                size = info.size if kind == "file" else 0
                yield _Member(info.name, _steps(info.name), kind, size, info.linkname, info)
        self._check_end()

    def _check_end(self) -> None:
        """Raises unless zeros follow the last member, to the end of the file: tarfile stops where it reads no header.

        It reads to the end of a compressed file, where its checksum is.
        """
        self.stream.seek(self.file.offset)
        padding = 0
        while chunk := self.stream.read(_CHUNK):
            padding += len(chunk)
            if chunk.strip(b"\0") or padding > _MOST_PADDING:
                raise tarfile.ReadError("what follows its last whole member is no end")
        if padding < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it has no end")

    def extract(self, member: _Member, folder: Path) -> None:
        target = "/".join(_steps(member.target)) if member.kind == "hard link" else member.target
        source = member.source.replace(name="/".join(member.parts) or ".", linkname=target, deep=False)
        self.file.extract(source, folder, set_attrs=False, filter="data")


def _special(path: Path, name: str) -> UserError:
    return UserError(f"{path}: {name!r} is a device or another special file; pack files, folders and links alone")
