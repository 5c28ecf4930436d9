"""MATLAB files of both kinds, whole and damaged; the new kind is written here as MATLAB lays it out in HDF5."""

import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from matlab_files import finish, start, write_texts

from mmfuse.data.annotations.matlab import as_list, open_mat, read_mat, rows, texts
from mmfuse.errors import UserError


def cells(*values: object) -> np.ndarray:
    array = np.empty((1, len(values)), object)
    array[0, :] = values
    return array


def structs(*values: dict[str, object]) -> np.ndarray:
    array = np.empty((1, len(values)), [(name, object) for name in values[0]])
    for i, value in enumerate(values):
        array[0, i] = tuple(value.values())
    return array


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.mat"
    lists = {"two": cells("a/b", "c"), "one": cells("a/b"), "none": np.empty((1, 0), object), "other": 3}
    nested = {"split": {"val": cells("x", "y").T}, "views": structs({"n": "p", "b": structs({"k": 1.5})})}
    scipy.io.savemat(path, lists | nested, do_compression=True)
    return path


def test_lists_and_structs_are_plain_values_however_many_they_are(old: Path) -> None:
    values = read_mat(old, "two", "one", "none", "split", "views")
    assert values.keys() == {"two", "one", "none", "split", "views"}
    assert as_list(values["two"]) == ["a/b", "c"]
    assert as_list(values["one"]) == ["a/b"]
    assert as_list(values["none"]) == []
    assert as_list(values["split"]["val"]) == ["x", "y"]
    (view,) = as_list(values["views"])
    assert view["n"] == "p"
    assert as_list(view["b"]) == [{"k": 1.5}]


def test_a_lacking_variable_is_named_with_the_nearest(old: Path) -> None:
    with pytest.raises(UserError, match=r"old.mat: 'tow' is not a known variable of this file; did you mean 'two'\?"):
        read_mat(old, "one", "tow")


def refused(read: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as raised:
        read()
    assert "\n" not in str(raised.value)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_file_that_was_cut_off_anywhere_is_one_line(old: Path, tmp_path: Path) -> None:
    content, cut = old.read_bytes(), tmp_path / "cut.mat"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        refused(lambda: read_mat(cut, "two", "one", "none", "split", "views", "other"), "cut.mat: ")


def test_a_changed_byte_of_packed_variables_is_found(old: Path, tmp_path: Path) -> None:
    content, spoiled = bytearray(old.read_bytes()), tmp_path / "spoiled.mat"
    content[160] ^= 255
    spoiled.write_bytes(content)
    refused(lambda: read_mat(spoiled, "two"), "spoiled.mat: can't be read as a MATLAB file (", "fetch it anew")


def test_missing_files_and_packages_are_named(
    old: Path, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(lambda: read_mat(tmp_path / "x.mat", "a"), "x.mat: No such file or directory; check the path")
    refused(lambda: open_mat(tmp_path / "x.mat").__enter__(), "x.mat: No such file or directory; check the path")
    refused(lambda: read_mat(tmp_path, "a"), f"{tmp_path}: Is a directory")
    refused(lambda: open_mat(tmp_path).__enter__(), f"{tmp_path}: Is a directory")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(lambda: read_mat(old, "two"), "needs SciPy to be read; pip install 'mmfuse[mat]'")
    refused(lambda: open_mat(new).__enter__(), "needs h5py to be read; pip install 'mmfuse[mat]'")


# ---- version 7.3


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new.mat"
    with start(path) as file:
        write_texts(file, "names", ["chair", "night stand", "x"])
        images = np.arange(7 * 4 * 5, dtype=np.uint8).reshape(7, 4, 5)
        file.create_dataset("images", data=images, chunks=(3, 2, 5), compression="gzip")
        file.create_dataset("plain", data=images)
    return finish(path)


def test_arrays_come_row_by_row_and_chunks_at_once(new: Path) -> None:
    expected = np.arange(7 * 4 * 5, dtype=np.uint8).reshape(7, 4, 5)

    class Counted:
        def __init__(self, array: h5py.Dataset) -> None:
            self.array, self.reads = array, 0
            self.chunks, self.file = array.chunks, array.file

        def __len__(self) -> int:
            return len(self.array)

        def __getitem__(self, part: slice) -> np.ndarray:
            self.reads += 1
            return self.array[part]

    with open_mat(new, "images", "plain") as file:
        for name, reads in (("images", 3), ("plain", 7)):
            counted = Counted(file[name])
            found = list(rows(counted))
            assert counted.reads == reads
            np.testing.assert_array_equal(np.stack(found), expected)


def test_a_chunk_of_the_whole_file_is_not_read_at_once(tmp_path: Path) -> None:
    with start(tmp_path / "x.mat") as file:
        file.create_dataset("a", data=np.arange(300), chunks=(300,))
    with open_mat(finish(tmp_path / "x.mat"), "a") as file:
        found = list(rows(file["a"]))
        assert [int(x) for x in found] == list(range(300))
        assert found[0].base is None or found[0].base.size <= 128


def test_texts_are_read(new: Path) -> None:
    with open_mat(new, "names") as file:
        assert texts(file["names"]) == ["chair", "night stand", "x"]
        refused(lambda: texts(file["images"]), "new.mat: can't be read as a MATLAB file")


def test_each_kind_says_that_it_is_not_the_other(old: Path, new: Path) -> None:
    refused(lambda: read_mat(new, "names"), "new.mat: is of MATLAB's version 7.3; save it with -v7")
    refused(lambda: open_mat(old).__enter__(), "old.mat: is not of MATLAB's version 7.3 (HDF5)")


def test_a_damaged_new_file_is_one_line(new: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mat"
    cut.write_bytes(new.read_bytes()[:-100])
    refused(lambda: open_mat(cut).__enter__(), "cut.mat: can't be read as a MATLAB file (", "truncated")
    with h5py.File(new, "r") as file:
        at, length = file["images"].id.get_chunk_info(0).byte_offset, file["images"].id.get_chunk_info(0).size
    content = bytearray(new.read_bytes())
    content[at : at + length] = bytes(length)
    new.write_bytes(content)
    with open_mat(new, "images") as file:
        refused(lambda: list(rows(file["images"])), "new.mat: can't be read as a MATLAB file (")
    with open_mat(new) as file, pytest.raises(OSError, match="disk is full"):
        raise OSError(28, "disk is full")


def test_an_array_may_not_lie_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    path = tmp_path / "x.mat"
    with start(path) as file:
        file.create_dataset("whole", data=[1])
        file["linked"] = h5py.ExternalLink("other.h5", "/a")
        file.create_dataset("raw", (8,), "u1", external=[(str(tmp_path / "secret"), 0, 8)])
        layout = h5py.VirtualLayout((1,), "i8")
        layout[:] = h5py.VirtualSource("other.h5", "a", (1,))
        file.create_virtual_dataset("virtual", layout)
        file.create_group("group")
    finish(path)
    with open_mat(path, "whole") as file:
        assert file["whole"][0] == 1
    for name in ("linked", "raw", "virtual", "group"):
        refused(lambda name=name: open_mat(path, "whole", name).__enter__(), f"{name!r} is no array in this file")
    refused(lambda: open_mat(path, "hole").__enter__(), "'hole' is not a known variable", "did you mean 'whole'?")
