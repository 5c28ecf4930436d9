import math
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mmfuse.errors import UserError
from mmfuse.evaluation.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    UNSEEN,
    ImageCorruption,
    corrupt,
    faulty,
    trainable,
)
from mmfuse.sensor import Sensor

BY_NAME = {c.name: c for c in CORRUPTIONS}
IMAGE = [c for c in CORRUPTIONS if isinstance(c, ImageCorruption)]
HEIGHT, WIDTH = 48, 64
BY_CHANCE = {"shift", "rotation", "gain", "nonuniformity", "noise", "depth_noise", "depth_holes"}
BY_CHANCE |= {"constant", "dead_pixels", "lens_dirt"}
BOXES = torch.tensor([[0.25, 0.25, 0.5, 0.75]])

COLOUR = Sensor(3, mean=(100.0, 110.0, 120.0), std=(50.0, 50.0, 50.0))
COUNTS = Sensor(1, range=(7000.0, 9000.0), mean=(0.25,), std=(0.1,))
DEPTH = Sensor(1, "inverse_depth", near=1.0, far=16.0)


def raw(kind, seed=0):
    """A sensor and an image of it, of each type that files have."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH)
    noise = rng.random((3, HEIGHT, WIDTH))
    sensor, image = {
        "colour": (COLOUR, (noise * 255).astype(np.uint8)),
        "colour16": (Sensor(3), (noise * 65535).astype(np.uint16)),
        "grey": (Sensor(1), (noise[:1] * 255).astype(np.uint8)),
        "counts": (COUNTS, (7000 + 2000 * ramp + 50 * noise[:1]).astype(np.uint16)),
        "celsius": (Sensor(1, "celsius", unit=0.04, range=(-10.0, 60.0)), (7000 + 700 * ramp).astype(np.uint16)),
        "percentile": (Sensor(1, "percentile"), (3000 * noise[:1] + 500).astype(np.uint16)),
        "float": (Sensor(1), (300 * noise[:1] - 20).astype(np.float32)),
        "ten": (Sensor(10), rng.integers(0, 256, (10, HEIGHT, WIDTH), dtype=np.uint8)),
        "depth": (DEPTH, (1000 + 14000 * ramp).astype(np.uint16)),
        "depth_float": (Sensor(1, "hha", unit=1.0, near=1.0, far=16.0), (1 + 14 * ramp).astype(np.float32)),
        "disparity": (Sensor(1, "metres", disparity=(100.0, 0.0), near=1.0, far=16.0), (7 + 90 * ramp).astype("u1")),
    }[kind]
    image = torch.from_numpy(image)
    if sensor.is_depth:
        image.view(torch.int16 if image.dtype == torch.uint16 else image.dtype)[:, :4, :4] = 0
    elif image.is_floating_point():
        image[:, :4, :4] = torch.nan
    return sensor, image


KINDS = ("colour", "colour16", "grey", "counts", "celsius", "percentile", "float", "ten")
KINDS += ("depth", "depth_float", "disparity")
PAIRS = [(c, kind) for c in IMAGE for kind in KINDS if c.suits(raw(kind)[0])]


def same(a, b):
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


def invalid(sensor, image):
    return sensor.metres(image)[1] == 0 if sensor.is_depth else image.float().isnan()


@pytest.mark.parametrize(("corruption", "kind"), PAIRS, ids=lambda x: getattr(x, "name", x))
def test_every_corruption_keeps_the_contract(corruption, kind):
    sensor, image = raw(kind)
    kept = image.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert same(corruption(image, sensor, 0, 5, BOXES), image)
    for severity in range(1, SEVERITIES + 1):
        changed = corruption(image, sensor, severity, 5, BOXES)
        assert changed.dtype == image.dtype
        assert changed.shape == image.shape
        assert same(changed, corruption(image, sensor, severity, 5, BOXES))
        if corruption.name not in ("shift", "rotation"):  # these move gaps
            gaps, before = invalid(sensor, changed), invalid(sensor, image)
            assert gaps[before].all()
            if corruption.name not in ("depth_holes", "range_cut", *(["blank_black", "dead_pixels"] * sensor.is_depth)):
                assert (gaps == before).all()
        assert not changed.float().isinf().any()
    assert not same(changed, image)
    assert same(image, kept)
    others = [corruption(image, sensor, 4, seed, BOXES) for seed in range(8)]
    by_chance = BY_CHANCE | ({"blank_white", "blank_black"} if sensor.is_depth else set())
    assert any(not same(others[0], other) for other in others) == (corruption.name in by_chance)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator neither moves nor matters
    torch.manual_seed(2)
    assert same(changed, pickle.loads(pickle.dumps(corruption))(image, sensor, SEVERITIES, 5, BOXES))


def test_the_sensor_decides_what_suits():
    def suiting(sensor):
        return {c.name for c in CORRUPTIONS if c.suits(sensor)}

    anywhere = {"missing", "frozen", "another_scene", "shift", "rotation"}
    anywhere |= {"blank_white", "blank_black", "constant", "dead_pixels"}
    light = {*anywhere, "blur", "fog", "noise", "lens_dirt"}
    assert suiting(Sensor(3)) == light | {"under_exposure", "over_exposure", "camouflage"}
    assert suiting(Sensor(3, register="rig")) == light | {"under_exposure", "over_exposure"}
    warmth = light | {"gain", "agc", "nonuniformity"}
    assert suiting(Sensor(1)) == suiting(replace(COUNTS, register="resize")) == warmth | {"crossover"}
    assert suiting(replace(COUNTS, register="rig")) == warmth  # boxes can't be brought to its raw image
    assert suiting(Sensor(10)) == light
    assert suiting(DEPTH) == anywhere | {"depth_noise", "depth_holes", "range_cut"}


def test_training_may_use_what_is_not_kept_for_measuring():
    assert set(UNSEEN) <= BY_NAME.keys()
    kept_out = {"blank_white", "constant", "frozen", "another_scene", "lens_dirt", "fog"}
    assert kept_out <= {c.name for c in CORRUPTIONS if not c.trainable} == set(UNSEEN)
    names = {m: [c.name for c in trainable(s)] for m, s in (("c", COLOUR), ("t", COUNTS), ("d", DEPTH))}
    shared = ["missing", "blank_black", "dead_pixels"]
    assert names["c"] == [*shared, "under_exposure", "over_exposure", "blur", "noise", "camouflage"]
    assert names["t"] == [*shared, "blur", "gain", "nonuniformity", "noise", "crossover"]
    assert names["d"] == [*shared, "depth_noise", "depth_holes"]


def test_a_corruption_is_called_by_its_name():
    sensor, image = raw("counts")
    assert same(corrupt(image, sensor, "noise", 3, 7), BY_NAME["noise"](image, sensor, 3, 7))
    for name in ("nois", "missing"):
        with pytest.raises(UserError, match=f"^corruption: '{name}' is not a known corruption of images; "):
            corrupt(image, sensor, name, 3)


def test_what_does_not_suit_is_refused():
    with pytest.raises(UserError, match="fog: doesn't suit a sensor with 1 channels of inverse_depth"):
        BY_NAME["fog"](raw("depth")[1], DEPTH, 1)
    for severity in (-1, 6, 1.5):
        with pytest.raises(UserError, match=r"severity: .* is not allowed; use a whole number from 0 to 5"):
            BY_NAME["fog"](raw("colour")[1], COLOUR, severity)


@pytest.mark.parametrize("width", [640, 320])
@pytest.mark.parametrize("seed", range(6))
def test_a_shift_is_a_move_whose_length_is_stated_at_640_pixels(width, seed):
    image = torch.randint(256, (3, 80, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    marked = image.clone()
    marked[:, 40, width // 2] = 0
    corruption = BY_NAME["shift"]
    for severity, level in enumerate((4, 8, 15, 22, 30), 1):
        moved, without = corruption(marked, COLOUR, severity, seed), corruption(image, COLOUR, severity, seed)
        row, column = (moved != without).any(0).nonzero()[0].tolist()
        y, x = row - 40, column - width // 2
        assert math.hypot(x, y) == pytest.approx(level * width / 640, abs=0.71)
        rolled = torch.roll(marked, (y, x), (1, 2))
        inside = torch.zeros(80, width, dtype=torch.bool)
        inside[max(y, 0) : 80 + min(y, 0), max(x, 0) : width + min(x, 0)] = True
        assert (moved[:, inside] == rolled[:, inside]).all()
        assert (moved[:, ~inside] == torch.tensor([[100], [110], [120]])).all()  # the sensor's fill
        assert (~inside).any()


def test_shifts_go_in_all_directions_but_keep_theirs_as_they_grow():
    image = torch.zeros(3, 99, 640, dtype=torch.uint8)
    image[:, 50, 320] = 255
    quarters = set()
    for seed in range(30):
        angles = []
        for severity in (2, 3, 5):
            row, column = (BY_NAME["shift"](image, COLOUR, severity, seed)[0] == 255).nonzero()[0].tolist()
            angles.append(math.atan2(row - 50, column - 320))
        assert all(math.cos(a - angles[0]) > 0.99 for a in angles)
        quarters.add(int((angles[0] + math.pi) / (math.pi / 2)) % 4)
    assert quarters == {0, 1, 2, 3}


def test_shifts_beyond_a_small_image_leave_the_fill():
    tall = torch.full((3, 2, 640), 7, dtype=torch.uint8)
    for seed in range(8):
        moved = BY_NAME["shift"](tall, COLOUR, 5, seed)
        assert moved.shape == tall.shape
        assert ((moved == 7) | (moved == torch.tensor([100, 110, 120])[:, None, None])).all()


def test_gaps_of_a_moved_image_are_invalid_or_the_mean():
    sensor, image = raw("depth_float")
    for name in ("shift", "rotation"):
        changed = BY_NAME[name](image, sensor, 5, 1)
        assert (changed == 0).sum() > (image == 0).sum()
        assert set(changed.unique().tolist()) <= set(image.unique().tolist())  # depth isn't mixed over an edge
    sensor, image = raw("percentile")
    moved = BY_NAME["shift"](image, sensor, 5, 1).float()
    assert (moved == image.float().mean().round()).sum() > HEIGHT
    sensor, image = raw("counts")
    assert (BY_NAME["rotation"](image, sensor, 5, 1).float()[0, 0, 0] - 7500).abs() < 1


def test_rotation_turns_about_the_centre_either_way():
    image = torch.zeros(1, 201, 201)
    image[0, 98:103, 180] = 1000.0
    rows, columns = torch.meshgrid(torch.arange(201.0) - 100, torch.arange(201.0) - 100, indexing="ij")
    for severity, degrees in enumerate((1, 2.5, 5, 7.5, 10), 1):
        found = set()
        for seed in range(12):
            turned = BY_NAME["rotation"](image, Sensor(1), severity, seed)[0]
            weight = turned / turned.sum()
            y, x = float((weight * rows).sum()), float((weight * columns).sum())
            assert math.hypot(x, y) == pytest.approx(80, abs=0.3)
            found.add(round(math.degrees(math.atan2(y, x)), 1))
        assert len(found) == 2
        assert sorted(found) == pytest.approx([-degrees, degrees], abs=0.15)


def test_exposure_moves_stops_and_saturates():
    image = torch.tensor([0, 40, 100, 200, 255], dtype=torch.uint8).repeat(3, 1, 1)
    darker = BY_NAME["under_exposure"](image, COLOUR, 2)  # 2 stops: 2 ** (-2 / 2.2) = 0.5325
    assert darker[0, 0].tolist() == [0, 21, 53, 107, 136]
    brighter = BY_NAME["over_exposure"](image, COLOUR, 2)  # 1 stop: 1.3704
    assert brighter[0, 0].tolist() == [0, 55, 137, 255, 255]
    deep = torch.tensor([100, 1100, 4100], dtype=torch.uint16).repeat(3, 1, 1)
    twelve = Sensor(3, range=(100.0, 4100.0))
    assert BY_NAME["over_exposure"](deep, twelve, 2)[0, 0].tolist() == [100, 1470, 4100]


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        *(("blank_white", "colour", 255), ("blank_white", "counts", 9000), ("blank_white", "celsius", 8328.75)),
        *(("blank_black", "colour", 0), ("blank_black", "counts", 7000), ("blank_black", "celsius", 6578.75)),
    ],
)
def test_blank_images_lose_their_contrast_to_black_or_white(name, kind, value):
    sensor, image = raw(kind)
    for severity, level in enumerate((0.5, 0.7, 0.85, 0.95, 1.0), 1):
        changed = BY_NAME[name](image, sensor, severity).float()
        assert torch.allclose(changed, (1 - level) * image.float() + level * value, atol=0.51)


def test_a_constant_image_has_a_value_of_the_range_by_chance():
    sensor, image = raw("counts")
    values = [BY_NAME["constant"](image, sensor, 5, seed).float().unique() for seed in range(20)]
    assert all(len(v) == 1 and 7000 <= v <= 9000 for v in values)
    assert len({float(v) for v in values}) > 15
    flat = BY_NAME["constant"](image, sensor, 1, 3).float()
    assert float(flat.std()) == pytest.approx(float(image.float().std()) / 2, rel=0.01)


def test_blank_depth_is_a_share_of_pixels_that_are_far_or_measure_nothing():
    image = torch.full((1, 200, 200), 5000).to(torch.uint16)
    image.view(torch.int16)[:, :50] = 0
    for severity, level in enumerate((0.5, 0.7, 0.85, 0.95, 1.0), 1):
        white = BY_NAME["blank_white"](image, DEPTH, severity, 2).float()
        black = BY_NAME["blank_black"](image, DEPTH, severity, 2).float()
        assert float((white == 16000).float().mean()) == pytest.approx(0.75 * level, abs=0.01)
        assert set(white.unique().tolist()) <= {0, 5000, 16000}
        assert float((black[:, 50:] == 0).float().mean()) == pytest.approx(level, abs=0.01)
    disparity = Sensor(1, "metres", disparity=(100.0, 0.0), near=1.0, far=16.0)
    assert BY_NAME["blank_white"](torch.full((1, 4, 4), 50.0), disparity, 5).unique().tolist() == [6.25]
    value = BY_NAME["constant"](image, DEPTH, 5, 1).float().unique().tolist()
    assert value[0] == 0
    assert 1000 <= value[1] <= 16000


@pytest.mark.parametrize("kind", ["colour", "counts", "depth"])
def test_dead_pixels_and_columns_are_stuck_and_stay_dead(kind):
    sensor, _ = raw(kind)
    image = torch.full((sensor.channels, 60, 4000), 77 if kind == "colour" else 7700)
    image = image.to(torch.uint8 if kind == "colour" else torch.uint16)
    before = torch.zeros(60, 4000, dtype=torch.bool)
    for severity, share in enumerate((0.005, 0.01, 0.02, 0.05, 0.1), 1):
        changed = BY_NAME["dead_pixels"](image, sensor, severity, 4).float()
        dead = (changed != image.float()).any(0)
        columns = dead.all(0)
        assert float(columns.float().mean()) == pytest.approx(share, abs=0.012)
        assert float(dead[:, ~columns].float().mean()) == pytest.approx(share, rel=0.1)
        assert dead[before].all()
        stuck = {"colour": {0, 255}, "counts": {7000, 9000}, "depth": {0}}[kind]
        assert set(changed[:, dead].unique().tolist()) == stuck
        before = dead


def test_dirt_hides_patches_that_grow():
    image = torch.full((3, 240, 320), 200, dtype=torch.uint8)
    before = torch.zeros(240, 320, dtype=torch.bool)
    for severity, share in enumerate((0.05, 0.1, 0.2, 0.35, 0.5), 1):
        changed = BY_NAME["lens_dirt"](image, COLOUR, severity, 9)
        dirty = (changed != image).any(0)
        assert share * 0.9 < float(dirty.float().mean()) <= share
        assert dirty[before].all()
        assert int(changed.min()) == 65  # a tenth of 200 and nine of a quarter of the mean
        assert (dirty[:, 1:] != dirty[:, :-1]).float().mean() < 0.03
        before = dirty
    warm = torch.arange(7000, 9000, 25).to(torch.uint16).repeat(1, 60, 1)
    changed = BY_NAME["lens_dirt"](warm, COUNTS, 5, 1).float()
    assert (changed - 7987.5).abs().max() <= (warm.float() - 7987.5).abs().max()


def street(height=40, width=60):
    """Ground that warms to the right and downwards, and the boxes of two objects on it, one in a corner."""
    ground = 7200.0 + 5 * torch.arange(width) + 3 * torch.arange(height)[:, None]
    boxes = [(10, 8, 26, 30), (52, 30, 60, 40)]
    warm = ground.clone()
    for x1, y1, x2, y2 in boxes:
        warm[y1:y2, x1:x2] += 500
    shares = torch.tensor(boxes) / torch.tensor([width, height, width, height])
    return ground[None].to(torch.uint16), warm[None].to(torch.uint16), shares


def test_crossover_makes_objects_as_warm_as_what_is_behind_them():
    ground, warm, boxes = street()
    ground = ground.float()
    for severity, level in enumerate((0.5, 0.7, 0.85, 0.95, 1.0), 1):
        apart = BY_NAME["crossover"](warm, COUNTS, severity, 0, boxes).float() - ground
        assert torch.allclose(apart[:, 8:30, 10:26], torch.tensor(500 * (1 - level)), atol=1)  # the slope goes on
        assert (apart[:, 30:, 52:] - 500 * (1 - level)).abs().max() < 60  # in a corner one rim is known each way
        apart[:, 8:30, 10:26] = apart[:, 30:, 52:] = 0
        assert (apart == 0).all()
    assert same(BY_NAME["crossover"](warm, COUNTS, 5), warm)  # without objects nothing changes


def test_camouflage_gives_objects_the_colours_behind_them():
    _, warm, boxes = street()
    grey = (warm.float() - 7000) / 4
    colours = torch.cat((grey, 255 - grey, 0.5 * grey)).round().to(torch.uint8)
    hidden = BY_NAME["camouflage"](colours, COLOUR, 5, 0, boxes)
    for channel in range(3):
        one = BY_NAME["crossover"](colours[channel : channel + 1], Sensor(1), 5, 0, boxes)
        assert same(hidden[channel : channel + 1], one)
    assert same(BY_NAME["camouflage"](colours, COLOUR, 5), colours)


def test_crossover_bears_any_boxes():
    _, warm, _ = street()
    whole = BY_NAME["crossover"](warm, COUNTS, 5, 0, torch.tensor([[0.0, 0, 1, 1]])).float()
    assert whole.unique().tolist() == [round(float(warm.float().mean()))]
    odd = torch.tensor([[-0.5, -0.5, 0.1, 2.0], [0.3, 0.3, 0.3, 0.3], [0.9, 0.9, 0.2, 0.2], [1.5, 1.5, 2, 2]])
    changed = BY_NAME["crossover"](warm, COUNTS, 5, 0, odd)
    assert (changed != warm).any()
    assert same(changed[:, :, 6:].contiguous(), warm[:, :, 6:].contiguous())
    gaps = warm.float()
    gaps[:, :, :12] = torch.nan
    mended = BY_NAME["crossover"](gaps, Sensor(1), 5, 0, torch.tensor([[0.2, 0.2, 0.4, 0.8]]))
    assert torch.equal(mended.isnan(), gaps.isnan())


def test_crossover_does_not_ask_in_which_order_boxes_come():
    boxes = torch.tensor([[36, 15, 46, 25], [10, 5, 40, 35]]) / torch.tensor([60, 40, 60, 40])
    warm = torch.full((1, 40, 60), 7500.0)
    warm[:, 5:35, 10:40] = 8000
    warm[:, 15:25, 36:46] = 8500
    cooled = [BY_NAME["crossover"](warm, COUNTS, 5, 0, order) for order in (boxes, boxes.flip(0))]
    assert torch.equal(*cooled)
    assert cooled[0][0, 15:25, 10:46].max() < 8000
    assert torch.allclose(cooled[0][0, 5:14, 10:36], torch.tensor(7500.0), atol=1)  # rows that only one box has


def gaussian(values, sigma):
    """Blurs a plane line by line, with the weights that lie inside it."""
    radius = math.ceil(6 * sigma)
    weights = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    for axis in (0, 1):
        inside = np.convolve(np.ones(values.shape[axis]), weights)[radius:-radius]
        blurred = np.apply_along_axis(lambda line: np.convolve(line, weights)[radius:-radius], axis, values)
        values = blurred / np.expand_dims(inside, 1 - axis)
    return values


def test_blur_is_gaussian_and_scales_with_the_width():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 60000, (1, 30, 160), dtype=np.uint16))
    for severity, sigma in ((1, 0.25), (3, 0.75), (5, 1.5)):  # 1, 3 and 6 px at a width of 640
        changed = BY_NAME["blur"](image, COUNTS, severity).float().numpy()
        np.testing.assert_allclose(changed[0], gaussian(image[0].numpy().astype(float), sigma), atol=0.6)


def test_blur_averages_over_what_was_measured():
    image = torch.full((1, 20, 640), 100.0)
    image[:, :, 320:] = torch.nan
    changed = BY_NAME["blur"](image, Sensor(1), 5)
    assert torch.allclose(changed[:, :, :320], torch.tensor(100.0))
    assert changed[:, :, 320:].isnan().all()


def test_fog_leaves_a_share_of_contrast_around_the_airlight():
    image = torch.zeros(3, 10, 10, dtype=torch.uint8)
    image[:, :2] = 200
    assert BY_NAME["fog"](image, COLOUR, 2).unique().tolist() == [100, 200]  # bright air, 0.5 of the contrast
    counts = torch.tensor([7000, 7000, 7000, 9000], dtype=torch.uint16).reshape(1, 2, 2)
    foggy = BY_NAME["fog"](counts, COUNTS, 5)  # air of the mean, 7500; a tenth of the contrast
    assert foggy.flatten().tolist() == [7450, 7450, 7450, 7650]


def test_gain_and_offset_change_in_all_four_ways():
    counts = torch.tensor([[[7500, 8000, 8500]]], dtype=torch.uint16)
    found = {tuple(BY_NAME["gain"](counts, COUNTS, 5, seed).flatten().tolist()) for seed in range(40)}
    assert found == {
        (7250 + o, 8000 + o, 8750 + o)
        for o in (-500, 500)  # 1.5 times about 8000, a quarter of 2000 up or down
    } | {(7667 + o, 8000 + o, 8333 + o) for o in (-500, 500)}


def test_agc_ends_at_256_steps_between_the_image_s_own_percentiles():
    sensor, _ = raw("counts")
    image = (8000 + torch.arange(1000)).reshape(1, 20, 50).to(torch.uint16)
    shown = BY_NAME["agc"](image, sensor, 5).float()
    assert len(shown.unique()) == 256
    assert (shown.min(), shown.max()) == (7000, 9000)
    low, high = np.percentile(image.numpy(), (1, 99))
    share = np.round(np.clip((image.numpy() - low) / (high - low), 0, 1) * 255) / 255
    np.testing.assert_allclose(shown.numpy(), 7000 + 2000 * share, atol=0.51)
    weak = BY_NAME["agc"](image, sensor, 1).float()
    assert (shown - image.float()).abs().mean() > 2 * (weak - image.float()).abs().mean()


@pytest.mark.parametrize(("kind", "span"), [("grey", 255.0), ("counts", 2000.0), ("celsius", 1750.0)])
def test_noise_is_a_share_of_the_range(kind, span):
    sensor, _ = raw(kind)
    middle = {"grey": 128, "counts": 30000, "celsius": 30000}[kind]
    flat = torch.full((1, 200, 200), middle).to(torch.uint8 if kind == "grey" else torch.uint16)
    for severity, level in ((1, 0.08), (2, 0.12)):
        noise = BY_NAME["noise"](flat, sensor, severity, 3).float() - middle
        assert float(noise.std()) == pytest.approx(level * span, rel=0.03)
        assert abs(float(noise.mean())) < 0.02 * level * span


def test_nonuniformity_is_columns_and_pixels():
    flat = torch.full((1, 300, 300), 30000).to(torch.uint16)
    pattern = BY_NAME["nonuniformity"](flat, COUNTS, 5, 3).float() - 30000
    columns = pattern.mean(1, keepdim=True)
    assert float(columns.std()) == pytest.approx(200, rel=0.15)
    assert float((pattern - columns).std()) == pytest.approx(200, rel=0.03)
    assert float((pattern - columns).mean(2).std()) < 30  # no rows


def test_noise_of_depth_grows_with_its_square_and_stays_in_range():
    for metres, sigma in ((2.0, 4 * 0.02 * 15 / 16), (4.0, 16 * 0.02 * 15 / 16)):
        flat = torch.full((1, 200, 200), 1000 * metres).to(torch.uint16)
        inverse = 1000 / BY_NAME["depth_noise"](flat, DEPTH, 4, 3).float()
        assert float(inverse.std()) * metres**2 == pytest.approx(sigma, rel=0.03)
    edge = torch.tensor([1000, 16000, 500, 40000]).to(torch.uint16).repeat(1, 100, 1)
    noisy = BY_NAME["depth_noise"](edge, DEPTH, 5, 0).float()
    near, far, nearer, farther = noisy[0].unbind(1)
    assert near.min() == 1000
    assert far.max() == 16000
    assert nearer.min() == 500
    assert farther.max() == 40000
    assert min(len(x.unique()) for x in (near, far, nearer, farther)) > 20
    sensor, image = raw("disparity")
    changed = BY_NAME["depth_noise"](image, sensor, 5, 0)
    error = (sensor.metres(changed)[0] - sensor.metres(image)[0]).abs() / sensor.metres(image)[0] ** 2
    assert 0.02 < float(error[image > 0].mean()) < 0.05


def test_holes_take_their_share_in_patches_and_grow():
    image = torch.full((1, 240, 320), 5000).to(torch.uint16)
    before = torch.zeros(1, 240, 320, dtype=torch.bool)
    for severity, share in enumerate((0.1, 0.2, 0.35, 0.5, 0.7), 1):
        changed = BY_NAME["depth_holes"](image, DEPTH, severity, 9)
        holes = changed.to(torch.int32) == 0
        assert float(holes.float().mean()) == pytest.approx(share, abs=1e-4)
        assert holes[before].all()
        assert (changed.to(torch.int32)[~holes] == 5000).all()
        edges = (holes[:, :, 1:] != holes[:, :, :-1]).float().mean()
        assert edges < 0.15  # single pixels would give 2 * share * (1 - share)
        before = holes


def test_the_range_is_cut_between_near_and_far():
    image = torch.tensor([[[1000, 3999, 4001, 12000, 13000, 0]]]).to(torch.uint16)
    shown = [BY_NAME["range_cut"](image, DEPTH, k).flatten().tolist() for k in (1, 5)]
    assert shown == [[1000, 3999, 4001, 12000, 0, 0], [1000, 3999, 0, 0, 0, 0]]  # 16 ** 0.9 = 12.1 m, 16 ** 0.5 = 4 m


def test_depth_in_other_units_is_cut_at_the_same_metres():
    sensor = Sensor(1, "metres", disparity=(-351.3, 1092.5), near=1.0, far=16.0)
    counts = torch.tensor([[[741, 1000, 1010]]]).to(torch.uint16)  # 1, 3.8 and 4.3 m
    assert BY_NAME["range_cut"](counts, sensor, 5).flatten().tolist() == [741, 1000, 0]


def test_faults_strike_their_share_and_those_of_lower_severity_again():
    ids = [7, 3, 100, 5, 9, 11, 2, 40, 41, 1]
    struck = [faulty(ids, severity, 4) for severity in range(SEVERITIES + 1)]
    assert [len(s) for s in struck] == [0, 2, 4, 6, 8, 10]
    assert all(a < b for a, b in pairwise(struck))
    assert struck[5] == set(ids)
    assert faulty(ids[::-1], 2, 4) == struck[2]
    assert len({frozenset(faulty(ids, 2, seed)) for seed in range(20)}) > 5


def test_images_of_one_value_or_none_are_borne():
    for image, sensor in (
        (torch.full((1, 8, 8), torch.nan), Sensor(1)),
        (torch.full((1, 8, 8), 300).to(torch.uint16), Sensor(1)),
        (torch.zeros(1, 8, 8).to(torch.uint16), DEPTH),
        (torch.zeros(3, 1, 1, dtype=torch.uint8), COLOUR),
    ):
        for corruption in (c for c in IMAGE if c.suits(sensor)):
            changed = corruption(image, sensor, 5, 0)
            assert changed.shape == image.shape
            assert not changed.float().isinf().any()
            if sensor.is_depth:
                assert (changed.float() == 0).all()


def test_noise_of_depth_in_coarse_counts_makes_no_holes():
    coarse = Sensor(1, "metres", unit=1.0, near=0.1, far=16.0)
    noisy = BY_NAME["depth_noise"](torch.ones(1, 50, 50, dtype=torch.uint8), coarse, 5)
    assert noisy.min() == 1
    assert noisy.max() > 1
