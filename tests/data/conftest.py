"""What tests of reading data share: pairs on disk, some of them unreadable, and a cache of their own."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmfuse.data.annotations.records import Record


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """11 pairs of 24 x 32 pixels, 8-bit RGB and 16-bit thermal, with two objects each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{i}_rgb.png")
        Image.fromarray(rng.integers(0, 60000, (24, 32), dtype=np.uint16)).save(folder / f"{i}_t.png")
        files = {"rgb": folder / f"{i}_rgb.png", "thermal": folder / f"{i}_t.png"}
        boxes = np.array([[2, 2, 20, 20], [4, 4, 30, 22]], np.float32)
        made.append(Record(100 + i, files, 32, 24, boxes, np.array([i % 2, 0]), np.array([False, i == 0])))
    return made


@pytest.fixture
def with_bad(records, tmp_path):
    """Returns the records, of which those of some numbers have an RGB image that can't be read."""

    def spoil(*numbers):
        (tmp_path / "bad.png").write_text("no image")
        return [
            dataclasses.replace(r, files={**r.files, "rgb": tmp_path / "bad.png"}) if i in numbers else r
            for i, r in enumerate(records)
        ]

    return spoil


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder that caches are made in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"
