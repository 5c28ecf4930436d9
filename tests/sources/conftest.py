"""A tiny detector of two sensors, and files for it."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.model.build import create_detector
from mmfuse.sensor import Sensor


@pytest.fixture
def detector():
    torch.manual_seed(0)
    sensors = {"rgb": Sensor(3), "thermal": Sensor(1)}
    made = create_detector(
        "d-4", {"rgb": 3, "thermal": 1}, classes=["one", "two"], sensors=sensors, input_size=(64, 96)
    )
    return made.to(memory_format=torch.channels_last).eval()


@pytest.fixture
def write():
    """Writes an image, drawn from a seed, and returns it."""

    def make(path, size=(96, 64), channels=3, dtype=np.uint8, seed=0):
        shape = (size[1], size[0], channels) if channels > 1 else (size[1], size[0])
        pixels = np.random.default_rng(seed).integers(0, 256 if dtype == np.uint8 else 60000, shape).astype(dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return make
