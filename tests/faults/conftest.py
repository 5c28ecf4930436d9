"""Where whole-product faults are tried: a small dataset and a trained run, copied for each, and a way to run a verb."""

import hashlib
import io
import json
import re
import shutil
import signal
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from mmfuse.cli import main
from mmfuse.embedded.dataset import generate
from mmfuse.model import checkpoint

SECONDS = 60
RECIPE = {
    "card": "set/card.yaml",
    "modalities": ["rgb", "thermal"],
    "model": {"size": "d-4"},
    "data": {"input_size": [96, 128], "workers": 0},
    "train": {"epochs": 1, "batch_size": 4, "lr": 0.05},
    "doubt": "off",
}


class Place:
    """A folder with a dataset `set`, a recipe `both.yaml`, a trained `run`, and `theirs`, which nobody may change."""

    def __init__(self, folder):
        self.folder = folder
        self.set, self.run, self.recipe = folder / "set", folder / "run", folder / "both.yaml"
        self.card, self.theirs = self.set / "card.yaml", folder / "theirs"

    def make(self):
        generate(self.set, counts={"train": 4, "val": 2, "test": 2}, seed=0, size=(96, 128))
        self.recipe.write_text(yaml.safe_dump(RECIPE))
        self.theirs.mkdir()
        (self.theirs / "important.json").write_text("important")
        assert self.mmfuse("train", self.recipe, "--out", self.run).code == 0
        return self

    def copied(self, folder):
        """Returns a copy, whose run is of the data in it."""
        shutil.copytree(self.folder, folder)
        copy = Place(folder)
        copy.edit(copy.run / "config.yaml", card=str(copy.card))
        return copy

    def edit(self, path, **changes):
        """Changes a mapping in YAML or JSON; None takes a key out. A name `a__b` is the key b in a."""
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        for name, value in changes.items():
            *outer, last = name.split("__")
            place = values
            for key in outer:
                place = place[key]
            place[last] = value
            if value is None:
                del place[last]
        path.write_text(json.dumps(values) if path.suffix == ".json" else yaml.safe_dump(values, sort_keys=False))

    def each(self, table, change, split="train"):
        """Changes each row of a table of a COCO file, such as its annotations."""
        path = self.set / f"{split}.json"
        values = json.loads(path.read_text())
        for row in values[table]:
            change(row)
        path.write_text(json.dumps(values))

    def file(self, modality, split="train", index=0):
        """Returns the file of an image."""
        return self.set / json.loads((self.set / f"{split}.json").read_text())["images"][index]["modalities"][modality]

    def repaint(self, modality, change, splits=("train", "val", "test")):
        """Writes the images of a sensor anew."""
        for split in splits:
            for index in range(len(json.loads((self.set / f"{split}.json").read_text())["images"])):
                path = self.file(modality, split, index)
                pixels = change(np.array(Image.open(path)))
                if isinstance(pixels, bytes):
                    path.write_bytes(pixels)
                else:
                    Image.fromarray(pixels).save(path)

    def header(self, **changes):
        """Writes the run's checkpoint anew, with another header."""
        tensors, header = checkpoint.read(self.run.joinpath("best.safetensors"))
        for name, value in changes.items():
            *outer, last = name.split("__")
            place = header
            for key in outer:
                place = place[key]
            place[last] = value
        content = {"mmfuse": json.dumps({"format": checkpoint.FORMAT, **header})}
        save_file(tensors, self.run / "best.safetensors", content)

    def digest(self, *parts):
        """Returns what tells whether any file below some folders changed, came or went."""
        files = sorted(path for part in parts for path in part.rglob("*") if path.is_file() or path.is_symlink())
        content = [path.read_bytes() if path.is_file() else b"" for path in files]
        return [(str(path), hashlib.sha256(data).hexdigest()) for path, data in zip(files, content, strict=True)]

    def mmfuse(self, *words):
        return Outcome(self, [str(word) for word in words])


class Outcome:
    """What came of a verb: its exit `code`, and the lines that it wrote, without progress bars."""

    def __init__(self, place, words):
        out, err = io.StringIO(), io.StringIO()
        started = time.monotonic()
        with _at_most(SECONDS), redirect_stdout(out), redirect_stderr(err):
            try:
                self.code = main(words)
            except SystemExit as end:
                self.code = end.code
        self.seconds = time.monotonic() - started
        self.out = out.getvalue()
        lines = err.getvalue().replace("\x1b[A", "").replace("\r", "\n").splitlines()
        self.err = [line for line in lines if line.strip() and not re.search(r"%\||\[\d\d:\d\d[<,]", line)]

    @property
    def text(self):
        return self.out + "\n".join(self.err)


@contextmanager
def _at_most(seconds):
    def ended(*_):
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("faults")).make()


@pytest.fixture
def place(made, tmp_path):
    return made.copied(tmp_path / "place")
