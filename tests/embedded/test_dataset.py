"""The embedded set: what lies on disk, and that geometry, occlusion and sensors are what they claim to be."""

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.embedded import dataset, render, solids, street, things
from mmfuse.embedded.solids import Camera, Look, Solid
from mmfuse.embedded.street import Light, Scene
from mmfuse.embedded.things import Place
from mmfuse.errors import UserError
from mmfuse.strict_yaml import read_yaml

COUNTS = {"train": 6, "val": 2}
SIZE = (96, 128)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset.generate(tmp_path_factory.mktemp("streets"), COUNTS, seed=3, size=SIZE).parent


def listing(root: Path, split: str) -> dict:
    return json.loads((root / f"{split}.json").read_text())


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def camera(pitch: float = 0.0) -> Camera:
    return Camera(focal=240.0, height=1.6, pitch=pitch, size=(192, 256))


def small_street(solids: list[Solid], labels: list[int], air: float = 10.0, lights: tuple[Light, ...] = ()) -> Scene:
    ground = Solid("box", np.array([0, -0.5, 300.5]), np.array([300, 0.5, 300]), Look(np.full(3, 0.15), air))
    return Scene(
        camera=camera(),
        condition="day",
        solids=[ground, *solids],
        labels=labels,
        shows_in=[("rgb", "thermal")] * len(labels),
        lights=list(lights),
        air=air,
        ambient=np.full(3, 0.7),
        sun=np.array([0, 1, 0]),
        sunlight=np.full(3, 0.2),
        sky=np.full(3, 0.7),
        sky_celsius=air - 5,
        fog=0.0,
        glare=0.0,
        glare_at=(0.5, 0.5),
    )


def test_every_file_is_there_and_as_the_card_says(root: Path) -> None:
    card = read_yaml(root / "card.yaml")
    assert list(card["modalities"]) == ["rgb", "thermal", "depth"]
    for split, count in COUNTS.items():
        content = listing(root, card["splits"][split].removesuffix(".json"))
        assert [c["name"] for c in content["categories"]] == card["classes"]
        assert [image["id"] for image in content["images"]] == list(range(1, count + 1))
        assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        for image in content["images"]:
            assert (image["height"], image["width"]) == SIZE
            assert image["condition"] in card["conditions"]
            for modality, sensor in card["modalities"].items():
                pixels = read(root / image["modalities"][modality])
                assert pixels.shape == (*SIZE, 3)[: 3 if sensor["channels"] == 3 else 2]
                assert pixels.dtype == (np.uint8 if modality == "rgb" else np.uint16)


def test_16_bit_values_survive_the_disk(root: Path) -> None:
    _, pictures = dataset.draw(3, "train", 0, SIZE)
    files = listing(root, "train")["images"][0]["modalities"]
    for modality, drawn in (("thermal", pictures.thermal), ("depth", pictures.depth)):
        np.testing.assert_array_equal(read(root / files[modality]), drawn)
        assert len(np.unique(drawn)) > 256


def test_boxes_lie_in_the_image_and_are_large_enough(root: Path) -> None:
    annotations = [a for split in COUNTS for a in listing(root, split)["annotations"]]
    assert len(annotations) >= 2 * sum(COUNTS.values())
    for annotation in annotations:
        x, y, width, height = annotation["bbox"]
        assert min(width, height) >= render.SMALLEST_SIDE
        assert min(x, y) >= 0
        assert x + width <= SIZE[1]
        assert y + height <= SIZE[0]
        assert render.SMALLEST_AREA <= annotation["area"] <= width * height


def test_the_same_seed_gives_the_same_bytes_whatever_the_counts(root: Path, tmp_path: Path) -> None:
    again = dataset.generate(tmp_path / "again", {"val": 1}, seed=3, size=SIZE).parent
    other = dataset.generate(tmp_path / "other", {"val": 1}, seed=4, size=SIZE).parent
    for file in ("rgb/val/000001.jpg", "thermal/val/000001.png", "depth/val/000001.png"):
        assert (again / file).read_bytes() == (root / file).read_bytes()
        assert (other / file).read_bytes() != (root / file).read_bytes()


def test_the_splits_show_different_scenes(root: Path) -> None:
    assert (root / "rgb/val/000001.jpg").read_bytes() != (root / "rgb/train/000001.jpg").read_bytes()


def test_an_interrupted_set_has_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = dataset.generate(tmp_path, {"train": 1}, size=(64, 64))
    assert card.exists()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "draw", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dataset.generate(tmp_path, {"train": 1}, size=(64, 64))
    assert not card.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": {"train": 0}}, "counts"),
        ({"counts": {}}, "counts"),
        ({"size": (32, 256)}, "size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}: "):
        dataset.generate(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        dataset.generate(tmp_path / "file", {"train": 1}, size=(64, 64))


@pytest.mark.parametrize("pitch", [0.0, 0.1])
def test_a_thing_of_known_size_is_where_a_pinhole_puts_it(pitch: float) -> None:
    board = Solid("box", np.array([1.0, 1.5, 12.0]), np.array([0.5, 0.75, 1e-4]), Look(np.ones(3), 0), owner=0)
    eye = camera(pitch)
    rows, columns = np.nonzero(solids.trace(eye, [board]).owner == 0)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    sine, cosine = np.sin(pitch), np.cos(pitch)
    lower, upper = [(12 * cosine - (y - 1.6) * sine, (y - 1.6) * cosine + 12 * sine) for y in (0.75, 2.25)]
    right = 128 + 240 * 1.5 / min(lower[0], upper[0])
    left = 128 + 240 * 0.5 / max(lower[0], upper[0])
    expected = [left, 96 - 240 * upper[1] / upper[0], right, 96 - 240 * lower[1] / lower[0]]
    np.testing.assert_allclose(seen, expected, atol=0.6)


def test_rays_and_projection_are_inverse() -> None:
    eye = camera(0.07)
    points = eye.origin + 9.0 * np.moveaxis(eye.rays(), 0, -1)
    columns, rows, depth = np.moveaxis(eye.project(points), -1, 0)
    np.testing.assert_allclose(columns, np.broadcast_to(np.arange(256) + 0.5, (192, 256)), atol=1e-2)
    np.testing.assert_allclose(rows, np.broadcast_to(np.arange(192)[:, None] + 0.5, (192, 256)), atol=1e-2)
    np.testing.assert_allclose(depth, 9.0, atol=1e-4)


@pytest.mark.parametrize("shape", ["box", "ellipsoid", "ring"])
def test_a_shape_touches_the_edges_of_its_extent(shape: solids.Shape) -> None:
    solid = Solid(shape, np.array([0, 1.6, 20.0]), np.array([2.0, 1.0, 0.05]), Look(np.ones(3), 0), owner=0, hole=0.5)
    view = solids.trace(camera(), [solid])
    rows, columns = np.nonzero(view.owner == 0)
    assert columns.max() + 1 - columns.min() == pytest.approx(48, abs=1)
    assert rows.max() + 1 - rows.min() == pytest.approx(24, abs=1)
    assert view.depth[view.owner == 0] == pytest.approx(20, abs=0.051)
    assert (view.owner[96, 128] == 0) == (shape != "ring")


def test_the_nearer_object_hides_the_farther_in_any_order() -> None:
    near = Solid("box", np.array([0, 1.0, 8.0]), np.array([0.5, 1.0, 0.3]), Look(np.ones(3), 0), owner=0)
    far = Solid("box", np.array([0.4, 1.0, 12.0]), np.array([0.8, 1.2, 0.3]), Look(np.ones(3), 0), owner=1)
    view, swapped = (solids.trace(camera(), order) for order in ([near, far], [far, near]))
    np.testing.assert_array_equal(view.owner, swapped.owner)
    alone = solids.trace(camera(), [near]).owner == 0
    assert np.all(view.owner[alone] == 0)
    assert view.whole[0] == alone.sum()
    assert 0 < (view.owner == 1).sum() < view.whole[1]
    assert np.all(view.depth[view.owner == 1] > view.depth[alone].max())


def test_a_box_is_tight_about_what_is_visible_and_the_hidden_is_left_out() -> None:
    rng = np.random.default_rng(0)
    wall = Solid("box", np.array([-1.0, 1.5, 6.0]), np.array([1.0, 1.5, 0.1]), Look(np.ones(3), 10))
    half_hidden = Solid("box", np.array([0.0, 1.0, 12.0]), np.array([1.0, 1.0, 0.5]), Look(np.ones(3), 10), owner=0)
    hidden = Solid("box", np.array([-2.2, 1.0, 12.0]), np.array([0.7, 1.0, 0.5]), Look(np.ones(3), 10), owner=1)
    pictures = render.render(small_street([wall, half_hidden, hidden], [1, 1]), rng)
    assert len(pictures.boxes) == 1
    left, top, right, bottom = pictures.boxes[0]
    assert left == pytest.approx(128, abs=0.6)  # the wall's edge is at x = 0
    assert right == pytest.approx(128 + 240 * 1.0 / 11.5, abs=0.6)
    assert top == pytest.approx(96 - 240 * 0.4 / 11.5, abs=0.6)
    assert bottom == pytest.approx(96 + 240 * 1.6 / 11.5, abs=0.6)
    metres = pictures.depth[int(top) + 2 : int(bottom) - 2, int(left) + 2 : int(right) - 2] / 1000
    assert np.median(metres[metres > 0]) == pytest.approx(11.5, abs=0.1)


def test_depth_has_holes_and_is_metric() -> None:
    wall = Solid("box", np.array([0, 2.0, 15.1]), np.array([4.0, 2.0, 0.1]), Look(np.ones(3), 10))
    depth = render.render(small_street([wall], []), np.random.default_rng(0)).depth
    assert np.all(depth[0] == 0)  # the sky
    inside = depth[70:110, 90:166]
    assert 0 < (inside == 0).mean() < 0.2
    assert np.median(inside[inside > 0]) == pytest.approx(15000, rel=0.01)
    assert np.median(depth[180]) == pytest.approx(1000 * 1.6 * 240 / 84.5, rel=0.02)


def test_thermal_counts_are_linear_in_temperature() -> None:
    walls = [
        Solid("box", np.array([x, 2.0, 8.0]), np.array([1.0, 2.0, 0.1]), Look(np.ones(3), celsius))
        for x, celsius in ((-1.5, 0.0), (1.5, 30.0))
    ]
    thermal = render.render(small_street(walls, [], air=15.0), np.random.default_rng(0)).thermal.astype(float)
    cold, warm = thermal[70:120, 70:95].mean(), thermal[70:120, 160:190].mean()
    assert cold == pytest.approx(7000, abs=60)
    assert warm - cold == pytest.approx(1200, abs=100)


def crop_contrast(picture: np.ndarray, rows: slice, columns: slice) -> float:
    """Spread of coarse blocks inside a crop, which noise hardly moves."""
    crop = picture[rows, columns].astype(float).reshape(picture[rows, columns].shape[0], -1, picture[0, 0].size)
    coarse = crop[: crop.shape[0] // 4 * 4, : crop.shape[1] // 4 * 4]
    return float(coarse.reshape(coarse.shape[0] // 4, 4, -1, 4, coarse.shape[2]).mean((1, 3)).std((0, 1)).max())


def test_a_poster_is_a_person_in_rgb_only_and_a_mirror_in_thermal_only() -> None:
    place = Place(np.array([0, 0, 6.0]), 0.0)
    inside = (slice(88, 152), slice(112, 144))
    shown = {}
    for name, solid in (
        ("poster", things.poster(place, 10.0, np.random.default_rng(1))),
        ("mirror", things.mirror(place, 10.0, 18.0, np.random.default_rng(1))),
    ):
        pictures = render.render(small_street([solid], []), np.random.default_rng(0))
        assert len(pictures.boxes) == 0
        metres = pictures.depth[inside] / 1000
        assert np.ptp(metres[metres > 0]) < 0.5
        shown[name] = crop_contrast(pictures.rgb, *inside), crop_contrast(pictures.thermal[..., None], *inside)
    assert shown["poster"][0] > 4 * shown["mirror"][0]
    assert shown["mirror"][1] > 4 * shown["poster"][1]


def test_a_person_is_as_tall_as_a_person_and_warm() -> None:
    place = Place(np.array([0, 0, 8.0]), 0.4, 0)
    body = things.person(place, things.Warmth(12, 32), np.random.default_rng(0))
    pictures = render.render(small_street(body, [0]), np.random.default_rng(0))
    (left, top, right, bottom), thermal = pictures.boxes[0], pictures.thermal.astype(float)
    assert 1.5 < (bottom - top) / 240 * 8 < 2.05
    centre = thermal[int(top + (bottom - top) * 0.35), int((left + right) / 2)]
    assert centre - thermal[int(bottom) - 4, 20] > 8 * render.COUNTS_PER_DEGREE


@pytest.mark.parametrize("maker", [things.person, things.car, things.bicycle])
def test_objects_stand_on_the_ground(maker: Callable) -> None:
    solids = maker(Place(np.array([0, 0, 10.0]), 1.0, 0), things.Warmth(10, 20), np.random.default_rng(2))
    lowest = min(s.centre[1] - np.linalg.norm(s.axes[:, 1] * s.half * [1, 1, s.shape != "ring"]) for s in solids)
    assert -0.15 < lowest < 0.15


def test_day_and_night_and_each_way_of_showing_are_common() -> None:
    scenes = [street.build_scene(np.random.default_rng([0, i]), SIZE) for i in range(200)]
    assert 0.35 < np.mean([s.condition == "night" for s in scenes]) < 0.65
    shown = [mode for s in scenes for mode in s.shows_in]
    for mode in (("rgb",), ("thermal",), ("rgb", "thermal")):
        assert 0.2 < shown.count(mode) / len(shown) < 0.5
    labels = np.concatenate([s.labels for s in scenes]).astype(int)
    assert np.bincount(labels, minlength=3).min() > 0.15 * len(labels)


def test_what_a_sensor_cannot_see_has_less_contrast_there() -> None:
    contrasts: dict[tuple[str, bool], list[float]] = {}
    for index in range(16):
        scene = street.build_scene(np.random.default_rng([1, index]), SIZE)
        silent = replace(scene, solids=[s for s in scene.solids if s.owner < 0])
        fine = scene.camera.finer(render.OVERSAMPLING)
        view = solids.trace(fine, scene.solids)
        with_objects = render._shade(scene, fine, view, np.random.default_rng(0))
        empty = solids.trace(fine, silent.solids)
        without = render._shade(silent, fine, empty, np.random.default_rng(0))
        for index_, mode in enumerate(scene.shows_in):
            mask = view.owner == index_
            if mask.sum() < 200:
                continue
            for sensor, a, b in zip(("rgb", "thermal"), with_objects, without, strict=True):
                contrasts.setdefault((sensor, sensor in mode), []).append(float(np.abs(a - b)[mask].mean()))
    for sensor in ("rgb", "thermal"):
        assert np.median(contrasts[sensor, True]) > 3 * np.median(contrasts[sensor, False])


def test_the_set_says_which_images_the_weather_washed_out(tmp_path: Path) -> None:
    card = load_card(dataset.generate(tmp_path, {"val": 16}, size=(64, 64)))
    scenes = [street.build_scene(np.random.default_rng([0, zlib.crc32(b"val"), i]), (64, 64)) for i in range(16)]
    told = [record.struck for record in read_split(card, "val")]
    assert told == [("rgb",) if scene.fog or scene.glare else () for scene in scenes]
    assert ("rgb",) in told
    assert () in told
