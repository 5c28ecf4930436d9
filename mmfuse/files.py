"""The one way to open a file that others gave, and to write a file or a folder: whole, or not at all."""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from mmfuse.errors import UserError, require

HUB = "hub:"
"""What the name of a detector on the Hugging Face Hub begins with, where else a path stands."""


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a file to be read; one that isn't a regular file, such as a pipe, is refused where it would be waited for.

    Raises:
        OSError: there is no such file, it is something else, or it may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a file, as `open_regular` opens it."""
    with open_regular(path) as file:
        return file.read()


def resolved(path: Path) -> Path:
    """Returns the absolute path, links followed, of what may be there or not.

    Raises:
        UserError: its links lead round in a loop, or no file can have this name.
    """
    try:
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        raise UserError(f"{str(path)!r}: is not a path that can be followed; check it and its links") from None


def write_whole(path: Path, content: bytes, *, fix: str = "check the path and the space on the disk") -> None:
    """Writes a file by way of a neighbour that is renamed, so that a good file is never replaced by half of one.

    The neighbour is a new file of a name that nobody knows beforehand, so no link that lies there is followed; it is
    removed on any failure. A link at `path` itself is replaced, what it points to stays as it is.

    Raises:
        UserError: the file can't be written; the message names it and ends with `fix`.
    """
    partial = _neighbour(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("xb") as file:
            file.write(content)
        partial.replace(path)
    except FileExistsError as error:
        raise UserError(f"{error.filename}: lies in the way of {path}; {fix}") from None
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror or error}; {fix}") from None
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a hidden folder to write into, which becomes `folder` when all is written.

    On any failure it is removed, and so are the folders above it that were made for it.

    Raises:
        UserError: there is such a folder with something in it, or a file; or the disk is full.
    """
    folder = resolved(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"out: {folder} is not an empty folder; give a new one")
    made = [above for above in folder.parents if not above.exists()]
    partial = _neighbour(folder)
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for above in made:
            with suppress(OSError):
                above.rmdir()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # writes name no file
            fix = "check the path and the space on the disk"
            raise UserError(f"{folder}: can't be written: {error.strerror or error}; {fix}") from None
        raise


def named_like(out: str | Path, *suffixes: str) -> Path:
    """Returns the path of a file to write.

    Raises:
        UserError: it is a folder, or doesn't end in one of the `suffixes`.
    """
    out = Path(out)
    if out.suffix not in suffixes or out.is_dir():
        raise UserError(f"out: {str(out)!r} is not a file name for this; end it in {' or '.join(suffixes)}")
    return out


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Makes a folder and holds it, so that no other process that asks for it writes there at the same time.

    The hold ends with the process, however that ends, and whatever children it leaves behind. A folder that is left
    empty is removed.

    Raises:
        UserError: another process holds it, or it can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder}: can't be written: {error.strerror or error}; check the path") from None
    try:
        with suppress(ImportError):  # where there is none, nobody is kept out
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{folder}: another process is writing there; wait for it, or choose another folder"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                    raise
        _held.add(descriptor)
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


_held: set[int] = set()


def _let_go() -> None:
    """Closes what a forked child has of its parent's folders: it would hold them when the parent is gone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def require_name(name: str, place: str) -> None:
    """Raises a UserError unless a name can be part of a file's name: no way out of a folder, and no hidden file."""
    require(re.fullmatch(r"\w[\w.+-]*", name), place, name, "use letters, digits and then also . _ + -")


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{secrets.token_hex(8)}.partial")
