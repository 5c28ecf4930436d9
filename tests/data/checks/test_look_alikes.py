from pathlib import Path

import numpy as np
import torch

from mmfuse.data.checks.look_alikes import difference_hash, look_alikes


def test_many_images_are_compared_at_once():
    rng = np.random.default_rng(0)
    looks = {s: [(Path(f"{s}{i}"), rng.random(64) < 0.5) for i in range(3000)] for s in ("train", "test")}
    looks["test"][2500] = (Path("test2500"), looks["train"][17][1])
    assert [line.split(";")[0] for line in look_alikes(looks)] == ["test2500: in test, looks like train17 in train"]


def test_a_difference_hash_says_where_grey_falls():
    falling = torch.arange(90, 0, -1).repeat(3, 80, 1)
    assert difference_hash(falling).all()
    assert not difference_hash(falling.flip(-1)).any()
    assert difference_hash(torch.full((1, 4, 4), 60000, dtype=torch.uint16)).shape == (64,)
    assert not difference_hash(torch.full((1, 9, 9), float("nan"))).any()
