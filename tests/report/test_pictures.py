import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from mmfuse.report.pictures import (
    GalleryRow,
    comparison_bars,
    displayable,
    gallery,
    overlay,
    robustness_curves,
    share_heatmap,
    share_panels,
    training_curves,
)
from mmfuse.sample import Detections
from mmfuse.sensor import Sensor

CLASSES = ("person", "car")
SENSORS = {"rgb": Sensor(3), "thermal": Sensor(1), "depth": Sensor(1, "inverse_depth")}
TRUTH = (torch.tensor([[8.0, 8, 24, 24]]), torch.tensor([1]))


@pytest.fixture
def images():
    return {
        "rgb": torch.full((3, 40, 60), 128, dtype=torch.uint8),
        "thermal": torch.arange(27000, 29400).reshape(1, 40, 60).to(torch.uint16),
        "depth": torch.arange(0, 24000, 10).reshape(1, 40, 60).to(torch.uint16),
    }


def found(*scores):
    boxes = torch.tensor([[5.0, 5, 30, 20], [20, 10, 50, 35]])[: len(scores)]
    return Detections(boxes, torch.tensor(scores), torch.arange(len(scores)))


def pixels(path):
    from matplotlib.image import imread

    assert path.read_bytes().startswith(b"\x89PNG")
    return imread(path)


def scores(ap):
    return {"per_condition": {"day": {"ap": ap + 0.1}, "night": {"ap": None}}}


def comparison(difference):
    models = [
        {"name": name, "modalities": m, "seeds": [0, 1], "ap": ap, "scores": [scores(a) for a in ap], "difference": d}
        for name, m, ap, d in (("rgb", ["rgb"], [0.3, 0.4], None), ("both", ["rgb", "d"], [0.5, 0.6], difference))
    ]
    return {
        "card": "street",
        "split": "test",
        "models": models,
        "reference": "rgb",
        "verdicts": [{"model": "both", "verdict": "yes", "text": "both ≥ best single: yes"}],
    }


def test_eight_bits_are_shown_as_they_are(images):
    shown = displayable(images["rgb"], SENSORS["rgb"])
    assert (shown.shape, shown.dtype) == ((40, 60, 3), np.uint8)
    assert (shown == 128).all()
    grey = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3)
    assert (displayable(grey, Sensor(1)) == grey.permute(1, 2, 0).numpy()).all()


def test_sixteen_bits_are_stretched_over_their_percentiles(images):
    shown = displayable(images["thermal"], SENSORS["thermal"]).astype(int).sum(axis=2)
    assert shown.min() < 10
    assert shown.max() > 600
    assert (np.diff(shown.mean(axis=1)) > 0).all()


def test_one_hot_pixel_does_not_darken_the_rest(images):
    hot = images["thermal"].to(torch.int32)
    hot[0, 0, 0] = 65535
    rest = displayable(hot.to(torch.uint16), Sensor(1))[1:]
    assert (rest == displayable(images["thermal"], Sensor(1))[1:]).mean() > 0.9


def test_flat_and_invalid_images_are_shown():
    assert displayable(torch.full((1, 4, 4), 300, dtype=torch.uint16), Sensor(1)).shape == (4, 4, 3)
    assert displayable(torch.full((1, 4, 4), torch.nan), Sensor(1)).shape == (4, 4, 3)
    assert (displayable(torch.zeros(1, 4, 4, dtype=torch.uint16), SENSORS["depth"]) == 0).all()


def test_holes_of_depth_are_black_and_near_is_bright(images):
    shown = displayable(images["depth"], SENSORS["depth"]).astype(int).sum(axis=2)
    assert shown[0, 0] == 0
    assert (shown.reshape(-1)[1:] > 0).all()
    assert shown[2].mean() > shown[-1].mean()


def test_overlay_draws_every_sensor(images, tmp_path):
    overlay(images, SENSORS, found(0.9, 0.5), CLASSES, tmp_path / "new" / "all.png", TRUTH, title="one image")
    overlay({"rgb": images["rgb"]}, SENSORS, found(0.9, 0.5), CLASSES, tmp_path / "one.png")
    assert pixels(tmp_path / "new" / "all.png").shape[1] > 2 * pixels(tmp_path / "one.png").shape[1]


def test_overlay_leaves_out_what_is_below_the_threshold(images, tmp_path):
    for name, detections in (("none", Detections.empty()), ("weak", found(0.2, 0.1)), ("strong", found(0.9, 0.1))):
        overlay({"rgb": images["rgb"]}, SENSORS, detections, CLASSES, tmp_path / name, threshold=0.3)
    assert (pixels(tmp_path / "none") == pixels(tmp_path / "weak")).all()
    assert (pixels(tmp_path / "none") != pixels(tmp_path / "strong")).any()


def test_overlay_colours_boxes_by_class(images, tmp_path):
    overlay({"rgb": images["rgb"]}, SENSORS, found(0.9, 0.8), CLASSES, tmp_path / "a.png")
    swapped = Detections(found(0.9, 0.8).boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    overlay({"rgb": images["rgb"]}, SENSORS, swapped, CLASSES, tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")).any()


def test_gallery_has_a_row_for_each_image_and_room_for_what_lacks(images, tmp_path):
    row = GalleryRow("1", images, TRUTH, {"single": found(0.9), "both": Detections.empty()})
    unpaired = GalleryRow("2", {"thermal": images["thermal"]}, TRUTH, row.detections)
    shown_on = {"single": "thermal", "both": "rgb"}
    gallery([row], SENSORS, shown_on, CLASSES, tmp_path / "one.png")
    gallery([row, unpaired], SENSORS, shown_on, CLASSES, tmp_path / "two.png", title="found")
    assert pixels(tmp_path / "two.png").shape[0] > pixels(tmp_path / "one.png").shape[0]


def test_comparison_bars_show_differences_where_there_are_any(tmp_path):
    comparison_bars(comparison(None), tmp_path / "bars.png")
    comparison_bars(
        comparison({"to": "rgb", "mean": 0.2, "low": 0.1, "high": 0.3, "rounds": 100}), tmp_path / "both.png"
    )
    assert pixels(tmp_path / "both.png").shape[1] > pixels(tmp_path / "bars.png").shape[1]


def test_comparison_bars_have_a_row_for_each_of_many_models(tmp_path):
    many = comparison(None)
    many["models"] = [{**model, "name": f"{model['name']} {i}"} for i in range(6) for model in many["models"]]
    comparison_bars(comparison(None), tmp_path / "two.png")
    comparison_bars(many, tmp_path / "twelve.png")
    assert pixels(tmp_path / "twelve.png").shape[0] > 2 * pixels(tmp_path / "two.png").shape[0]
    assert pixels(tmp_path / "twelve.png").shape[1] == pixels(tmp_path / "two.png").shape[1]


def test_training_curves_read_rows_of_a_csv(tmp_path):
    rows = [
        {"epoch": "1", "loss": "2.5", "val_ap": ""},
        {"epoch": "2", "loss": "1.5", "val_ap": "0.2"},
        {"epoch": 3, "loss": 1.0},
    ]
    training_curves({"rgb": rows, "both": rows[:1], "new": []}, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").size


def test_share_heatmap(tmp_path):
    share_heatmap({"rgb": {3: 0.2, 4: 0.9}, "thermal": {3: 0.8}}, tmp_path / "shares.png")
    assert pixels(tmp_path / "shares.png").size
    share_heatmap({"rgb": {3: 1.0}}, tmp_path / "one.png")
    assert pixels(tmp_path / "one.png").size


def shares(*conditions, by_image=True, delta=0.1, share=0.25):
    known = {"rgb": [share, share], "depth": [1 - share, 1 - share]}
    group = {"images": 4, "shares": known, "mean_share": {"rgb": share, "depth": 1 - share}}
    group |= {"delta_ap": {"rgb": delta, "depth": -0.02}}
    empty = {"images": 0, "shares": None, "mean_share": None, "delta_ap": {"rgb": None, "depth": None}}
    return {
        **{"name": "street", "split": "test", "modalities": ["rgb", "depth"], "levels": [3, 4], "by_image": by_image},
        **{"whole": group, "per_condition": {c: empty if c == "fog" else group for c in conditions}},
        "correlation": {"spearman": None, "pairs": 2, "why": "fewer than 3 pairs"},
    }


def test_shares_have_a_panel_for_each_condition_beside_what_ap_loses(tmp_path):
    def drawn(*conditions, **values):
        share_panels(shares(*conditions, **values), tmp_path / "shares.png")
        return pixels(tmp_path / "shares.png")

    one = drawn()
    assert (one == drawn()).all()
    assert (one != drawn(delta=0.2)).any()
    assert (one != drawn(share=0.3)).any()
    assert drawn("day", "night", "fog").shape[0] > 2.5 * one.shape[0]
    fixed = drawn("day", "fog", by_image=False)
    assert fixed.shape[0] == one.shape[0]
    assert fixed.shape[1] > 1.4 * one.shape[1]


def robustness(*curves):
    values = [{"corruption": name, "modality": m, "ap": [0.5, 0.4, 0.4, 0.3, 0.2, last]} for name, m, last in curves]
    return {"name": "street", "split": "test", "images": 3, "clean": {"ap": 0.5}, "curves": values}


def test_robustness_has_a_panel_for_each_corruption_and_a_line_for_each_modality(tmp_path):
    def drawn(name, *curves):
        robustness_curves(robustness(*curves), tmp_path / name)
        return pixels(tmp_path / name)

    one = drawn("one", ("shift", "rgb", 0.1))
    assert (one == drawn("again", ("shift", "rgb", 0.1))).all()
    assert (one != drawn("other", ("shift", "rgb", 0.2))).any()
    two = drawn("two", ("shift", "rgb", 0.1), ("shift", "depth", 0.2))
    assert two.shape == one.shape
    assert (two != one).any()
    seven = drawn("seven", *((f"corruption {i}", f"m{i}", 0.1) for i in range(7)))
    assert seven.shape[0] > 1.5 * one.shape[0]
    assert seven.shape[1] > 2 * one.shape[1]


def test_failed_picture_leaves_the_good_one(images, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"good")
    with pytest.raises(IndexError):
        overlay(images, SENSORS, Detections(found(0.9).boxes, torch.ones(1), torch.tensor([7])), CLASSES, path)
    assert path.read_bytes() == b"good"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_drawing_works_off_the_main_thread(tmp_path):
    thread = threading.Thread(target=share_heatmap, args=({"rgb": {3: 1.0}}, tmp_path / "a.png"))
    thread.start()
    thread.join()
    assert (tmp_path / "a.png").exists()


def test_matplotlib_is_imported_only_when_drawing_and_pyplot_never(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mmfuse.report.pictures import share_heatmap;"
        "assert 'matplotlib' not in sys.modules;"
        f"share_heatmap({{'rgb': {{3: 1.0}}}}, Path({str(tmp_path / 'a.png')!r}));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
