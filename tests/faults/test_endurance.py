"""Faults that take minutes: a process that is killed again and again, many images, and large files. `make faults`."""

import json
import os
import random
import resource
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from mmfuse.cli import main
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.embedded.dataset import generate
from mmfuse.errors import UserError

pytestmark = pytest.mark.faults

KILLS = 12


def train(folder, out, *words, seconds=None):
    """Trains in a process of its own, which is killed after some seconds; returns its exit code."""
    command = [sys.executable, "-m", "mmfuse", "train", str(folder / "both.yaml"), "--out", str(out), *words]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:  # by SIGKILL
        return -9
    assert done.returncode == 0, done.stderr[-2000:]
    return 0


def test_a_training_that_is_killed_at_any_instant_ends_as_if_it_had_not_been(tmp_path, record_property):
    """A SIGKILL each time somewhere between the start and the end of what is left, and `--resume` after each."""
    record_property("fault", (8, "kills at any instant"))
    generate(tmp_path / "set", counts={"train": 8, "val": 4, "test": 2}, seed=0, size=(96, 128))
    recipe = {
        "card": "set/card.yaml",
        "modalities": ["rgb", "thermal"],
        "model": {"size": "d-4"},
        "data": {"input_size": [96, 128], "workers": 0},
        "train": {"epochs": 8, "batch_size": 4, "lr": 0.05},
        "doubt": "off",
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(recipe))
    started = time.monotonic()
    train(tmp_path, tmp_path / "whole")
    seconds = time.monotonic() - started
    out, instants, killed = tmp_path / "killed", random.Random(0), 0
    while killed < KILLS:
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        if train(tmp_path, out, *resume, seconds=instants.uniform(0.2, 0.8) * seconds) == 0:
            break
        killed += 1
    train(tmp_path, out, "--resume")
    print(f"killed {killed} times in {time.monotonic() - started:.0f} s; uninterrupted it took {seconds:.0f} s")
    assert killed
    assert (out / "best.safetensors").read_bytes() == (tmp_path / "whole" / "best.safetensors").read_bytes()
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (out, tmp_path / "whole")]
    assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]]
    assert not list(out.glob(".*"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """100,000 pairs, of which 500 files are different and the others links to these."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for name, shape in (("rgb", (48, 64, 3)), ("thermal", (48, 64))):
        (folder / name).mkdir()
        for i in range(500):
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{i:06}.png")
        for i in range(500, 100_000):
            os.link(folder / name / f"{i % 500:06}.png", folder / name / f"{i:06}.png")
    images = [
        {"id": i + 1, "modalities": {m: f"{m}/{i:06}.png" for m in ("rgb", "thermal")}, "width": 64, "height": 48}
        for i in range(100_000)
    ]
    boxes = [
        {"id": i + 1, "image_id": i // 5 + 1, "category_id": 1, "bbox": [1 + i % 9, 2, 20, 30], "area": 600}
        for i in range(500_000)
    ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
    (folder / "all.json").write_text(json.dumps(content))
    card = {
        "name": "many",
        "root": ".",
        "reader": "coco",
        "modalities": {"rgb": {"channels": 3}, "thermal": {"channels": 1}},
        "classes": ["car"],
        "splits": {"train": "all.json", "val": 0.01},
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    return folder


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def test_a_hundred_thousand_images_are_read_and_drawn(many, record_property):
    record_property("fault", (14, "100,000 images"))
    started = time.process_time()
    card = load_card(many / "card.yaml")
    counts = {split: len(read_split(card, split)) for split in card.splits}
    seconds = time.process_time() - started
    print(f"100,000 images, 500,000 boxes: both splits in {seconds:.0f} s of one core, peak {peak():.1f} GiB")
    assert counts == {"train": 99_000, "val": 1000}


def test_a_hundred_thousand_images_are_checked(many, record_property, capsys):
    record_property("fault", (14, "100,000 images checked"))
    started = time.process_time()
    code = main(["check", str(many / "card.yaml")])
    lines = capsys.readouterr().out.splitlines()
    print(f"100,000 images: check in {time.process_time() - started:.0f} s of one core, peak {peak():.1f} GiB")
    assert code == 2  # links are the same image in both splits
    assert len(lines) < 60


@pytest.mark.parametrize("content", ["annotations", "brackets", "text"])
def test_json_of_200_mb_is_read_or_refused(tmp_path, record_property, content):
    record_property("fault", (12, f"200 MB of {content}"))
    path = tmp_path / "train.json"
    if content == "annotations":
        row = '{"id": %d, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3.25, 4.5], "area": 14.625, "iscrowd": 0}'
        with path.open("w") as file:
            file.write(
                '{"images": [{"id": 1, "modalities": {"t": "1.png"}, "width": 64, "height": 48}], "annotations": ['
            )
            count = 0
            while file.tell() < 200e6:
                file.write(",\n".join(row % (count + i + 1) for i in range(1000)) + ",\n")
                count += 1000
            file.write(row % (count + 1) + '], "categories": [{"id": 1, "name": "car"}]}')
    else:
        path.write_bytes((b"[" if content == "brackets" else b"x") * 200_000_000)
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "1.png")
    card = {
        "name": "large",
        "root": ".",
        "reader": "coco",
        "modalities": {"t": {"channels": 1}},
        "classes": ["car"],
        "splits": {"train": "train.json"},
    }
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    started = time.process_time()
    if content == "annotations":
        (record,) = read_split(load_card(tmp_path / "card.yaml"), "train")
        assert len(record.boxes) == count + 1
    else:
        with pytest.raises(UserError, match="is not JSON"):
            read_split(load_card(tmp_path / "card.yaml"), "train")
    print(f"200 MB of {content}: {time.process_time() - started:.0f} s of one core, peak {peak():.1f} GiB")
