"""Files of MATLAB's version 7.3, laid out in HDF5 as MATLAB does it."""

from pathlib import Path

import h5py
import numpy as np


def write_texts(file: h5py.File, name: str, values: list[str]) -> None:
    """A cell array of texts: references, which go down MATLAB's columns, to arrays of UTF-16 codes."""
    references = np.empty((1, len(values)), h5py.ref_dtype)
    for i, value in enumerate(values):
        codes = np.array([[ord(c)] for c in value], np.uint16).reshape(-1, 1)
        references[0, i] = file.create_dataset(f"#refs#/{name}{i}", data=codes).ref
    file.create_dataset(name, data=references)


def start(path: Path) -> h5py.File:
    """A new file behind 512 bytes for MATLAB's header, which `finish` writes."""
    return h5py.File(path, "w", userblock_size=512)


def finish(path: Path) -> Path:
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    return path
