"""Reads MATLAB files: those of version 7.2 and older by SciPy, those of 7.3, which are HDF5, by h5py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.errors import UserError, unknown_name
from mmfuse.files import open_regular

_NEWER = b"MATLAB 7.3"
_MOST_ROWS = 128


def read_mat(path: Path, *names: str) -> dict[str, Any]:
    """Reads variables of a file of version 7.2 or older.

    A struct is a dict, a text a str, a number an array; a cell array or an array of structs is what `as_list` makes a
    list of, since one with a single element stands bare.

    Raises:
        UserError: the file is missing, damaged or of version 7.3, lacks a variable, or SciPy isn't installed.
    """
    try:
        import scipy.io
    except ImportError:
        raise UserError(f"{path}: needs SciPy to be read; pip install 'mmfuse[mat]'") from None
    try:
        with open_regular(path) as file:
            if file.read(len(_NEWER)) == _NEWER:
                raise UserError(f"{path}: is of MATLAB's version 7.3; save it with -v7")
            file.seek(0)
            _need(path, [name for name, _, _ in scipy.io.whosmat(file)], names)
            file.seek(0)
            values = scipy.io.loadmat(file, variable_names=names, simplify_cells=True)
            return {name: values[name] for name in names}
    except UserError:
        raise
    except Exception as error:  # SciPy raises what its parsing stumbles over, even MemoryError or TypeError
        raise _unreadable(path, error) from None


def as_list(value: Any) -> list[Any]:
    """Returns the elements of a cell array or an array of structs from `read_mat`."""
    return value if isinstance(value, list) else list(np.atleast_1d(np.asarray(value, object)))


@contextmanager
def open_mat(path: Path, *names: str) -> Iterator[Any]:
    """Opens a file of version 7.3, as `h5py.File`, with arrays `names`, whose axes are MATLAB's in reverse.

    Raises:
        UserError: the file is missing, damaged or of another version, lacks an array or has one that lies in another
            file, or h5py isn't installed.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: needs h5py to be read; pip install 'mmfuse[mat]'") from None
    if path.is_file() and not h5py.is_hdf5(path):
        raise UserError(f"{path}: is not of MATLAB's version 7.3 (HDF5); give the file as it was published")
    with _reading(path):
        open_regular(path).close()
        file = h5py.File(path, "r")
    with file:
        _need(path, list(file), names)
        for name in names:
            own = isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset)
            if not own or file[name].external or file[name].is_virtual:
                raise UserError(f"{path}: {name!r} is no array in this file; give the file as it was published")
        yield file


def rows(array: Any) -> Iterator[np.ndarray]:
    """Yields the rows of an `h5py.Dataset` along its first axis, each of its chunks read once.

    Raises:
        UserError: it is damaged.
    """
    step = min(array.chunks[0], _MOST_ROWS) if array.chunks else 1
    for start in range(0, len(array), step):
        with _reading(array.file.filename):
            block = array[start : start + step]
        yield from block


def texts(array: Any) -> list[str]:
    """Returns a cell array of texts, an `h5py.Dataset`.

    Raises:
        UserError: it is damaged or holds something else.
    """
    with _reading(array.file.filename):
        cells = [np.asarray(array.file[reference]) for reference in array[()].ravel()]
        return ["".join(map(chr, cell.ravel())) if cell.dtype.kind == "u" else "" for cell in cells]


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.filename:
        return UserError(f"{path}: {error.strerror}; check the path")
    detail = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"{path}: can't be read as a MATLAB file ({detail}); fetch it anew")


def _need(path: Path, known: list[str], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{path}: {unknown_name(name, known, 'variable of this file')}")
