import json
import shutil
import sys
from dataclasses import fields, replace
from functools import cache

import pytest
import torch
import yaml

from mmfuse.cli import main
from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.readers import read_split
from mmfuse.data.loader import eval_loader
from mmfuse.errors import UserError
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.results import Correlation
from mmfuse.evaluation.score import Evaluation
from mmfuse.model import checkpoint
from mmfuse.model.nodes import Feature, outputs_of
from mmfuse.report.tables import shares_markdown
from mmfuse.run import Run, build_detector
from mmfuse.verbs.shares import measured_weights, rank_correlation, shares

MODALITIES = ("rgb", "thermal", "depth")
MODULE = sys.modules["mmfuse.verbs.shares"]


@pytest.fixture(scope="module")
def measured_card(paired_set):
    card = load_card(paired_set)
    known = {"rgb": {"dtype": "uint8"}, "thermal": {"dtype": "uint16", "range": (28000.0, 31000.0)}, "depth": {}}
    sensors = {m: replace(sensor, **known[m]) for m, sensor in card.modalities.items()}
    return replace(card, modalities=sensors)


@pytest.fixture(scope="module")
def run_of(paired_set, measured_card, tmp_path_factory):
    """Makes a run, once, that wasn't trained, but has weights that differ widely and features that say something."""

    @cache
    def make(*modalities, card=paired_set, **model):
        folder = tmp_path_factory.mktemp("run")
        model = {"size": "d-4", "pyramid_depth": 2, "fusion": "gated_spatial"} | model
        recipe = {"name": "street", "card": str(card), "modalities": list(modalities or MODALITIES), "model": model}
        recipe |= {"data": {"input_size": [96, 128], "workers": 0}, "train": {"batch_size": 3}}
        (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
        run = Run(folder)
        torch.manual_seed(1)
        detector = build_detector(run.recipe, measured_card.modalities, measured_card.classes)
        for name, parameter in detector.named_parameters():
            if ".merge.gates." in name:
                torch.nn.init.normal_(parameter)
            elif ".merge.weight" in name:
                torch.nn.init.uniform_(parameter, 0.2, 2)
        for part in detector.train().modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.momentum = 1.0
        with torch.no_grad():
            detector({m: torch.randn(2, s.encoded_channels, 96, 128) for m, s in detector.sensors.items()})
        checkpoint.save_detector(run.best, detector, {})
        return run

    return make


@pytest.fixture
def scored(monkeypatch):
    """Gives every evaluation AP from a table: by the modality left out and the condition; returns what was asked.

    No picture is drawn, and a detector is loaded once.
    """
    table = {
        (): (0.5, 0.6, 0.4),
        ("rgb",): (0.45, 0.2, 0.5),
        ("thermal",): (0.3, 0.5, 0.1),
        ("depth",): (0.5, 0.6, 0.38),
    }
    asked, load = [], cache(checkpoint.load)

    def fake(run, *, split, without=()):
        asked.append((split, tuple(without)))
        records = records_of(run, split)
        ap, day, night = table[tuple(without)]
        conditions = {record.condition for record in records} - {None}
        of = {c: {"ap": one, "ap50": one} for c, one in (("day", day), ("night", night)) if c in conditions}
        nothing = dict.fromkeys((field.name for field in fields(Scores)), 0.0)
        scores = Scores(**nothing | {"ap": ap, "per_condition": of})
        return Evaluation(load(run.best), records, "0" * 64, {}, scores, {})

    monkeypatch.setattr(MODULE, "evaluate", fake)
    monkeypatch.setattr(MODULE, "load", load)
    monkeypatch.setattr(MODULE, "share_panels", lambda result, path: None)
    return asked


def records_of(run, split="test"):
    return read_split(load_card(run.recipe.card), split)


def by_hand(detector, record):
    """The shares of one image at the outputs, modality by level, from the maps that its merges read."""
    pyramid, maps = detector.pyramid, {}
    hooks = [
        merge.register_forward_pre_hook(lambda merge, given, i=i: maps.update({i: given[0]}))
        for i, merge in enumerate(pyramid.merges)
    ]
    (batch,) = eval_loader([record], detector.sensors, (96, 128), 1, 0)
    detector.detect(batch.images)
    for hook in hooks:
        hook.remove()

    def weights(index):
        merge, given = pyramid.merges[index], [x[0] for x in maps[index]]
        spatial = type(merge).__name__ == "GatedSpatial"
        opened = []
        for weight, gate, x in zip(merge.weight, merge.gates, given, strict=True):
            x = x if spatial else x.mean((1, 2), keepdim=True)
            opened.append(weight.relu() * (torch.einsum("c,cyx->yx", gate.weight[0], x) + gate.bias).sigmoid())
        total = sum(opened)
        used = [float((one / (total + 1e-4)).mean()) for one in opened]
        return [one / sum(used) for one in used]

    def share(source, modality):
        if isinstance(source, Feature):
            return float(source.modality == modality)
        inputs = pyramid.graph[source].inputs
        return sum(w * share(s, modality) for w, s in zip(weights(source), inputs, strict=True))

    with torch.inference_mode():
        return {m: [share(index, m) for index in outputs_of(pyramid.graph).values()] for m in MODALITIES}


def mean_of(found):
    levels = range(len(found[0]["rgb"]))
    return {m: [sum(one[m][i] for one in found) / len(found) for i in levels] for m in MODALITIES}


def assert_close(group, wanted, images):
    assert group.images == images
    for m in MODALITIES:
        assert group.shares[m] == pytest.approx(wanted[m], abs=1e-4)
        assert group.mean_share[m] == pytest.approx(sum(wanted[m]) / len(wanted[m]), abs=1e-4)


@pytest.fixture
def card_with(paired_set, tmp_path):
    """Copies the set, with a change to the entries of its test images, and returns its card."""

    def write(change):
        folder = tmp_path / "set"
        shutil.copytree(paired_set.parent, folder)
        truth = json.loads((folder / "test.json").read_text())
        for place, image in enumerate(truth["images"]):
            change(place, image)
        (folder / "test.json").write_text(json.dumps(truth))
        card = yaml.safe_load((folder / "card.yaml").read_text()) | {"missing": "allow"}
        (folder / "card.yaml").write_text(yaml.safe_dump(card))
        return folder / "card.yaml"

    return write


@pytest.mark.parametrize("fusion", ["gated", "gated_spatial"])
def test_weights_that_images_change_are_those_that_the_merges_used(run_of, scored, fusion):
    run = run_of(fusion=fusion)
    result = shares(run)
    detector, records = checkpoint.load(run.best), records_of(run)
    found = {record.image_id: by_hand(detector, record) for record in records}
    assert_close(result.whole, mean_of(list(found.values())), 4)
    assert (result.by_image, result.left_out) == (True, 0)
    assert list(result.per_condition) == ["day", "night"]
    for condition, group in result.per_condition.items():
        own = [found[r.image_id] for r in records if r.condition == condition]
        assert 0 < len(own) < 4
        assert_close(group, mean_of(own), len(own))
    day, night = (result.per_condition[c].shares["rgb"] for c in ("day", "night"))
    assert max(abs(a - b) for a, b in zip(day, night, strict=True)) > 1e-3
    for i in range(len(result.levels)):
        assert sum(result.whole.shares[m][i] for m in MODALITIES) == pytest.approx(1, abs=1e-5)


def test_images_that_lack_a_sensor_do_not_count(run_of, scored, card_with):
    run = run_of(card=card_with(lambda place, image: place == 1 and image["modalities"].pop("thermal")))
    result = shares(run)
    detector, records = checkpoint.load(run.best), records_of(run)
    assert "thermal" not in records[1].files
    whole = [by_hand(detector, record) for record in records if record is not records[1]]
    assert_close(result.whole, mean_of(whole), 3)
    assert result.left_out == 1
    assert sum(group.images for group in result.per_condition.values()) == 3
    assert "means over the 3 images that have all sensors; 1 were left out" in shares_markdown(result)


def test_a_condition_without_an_image_of_all_sensors_has_no_shares(run_of, scored, card_with):
    card = card_with(lambda place, image: image["condition"] == "day" and image["modalities"].pop("depth"))
    result = shares(run_of(card=card))
    day = result.per_condition["day"]
    assert (day.images, day.shares, day.mean_share) == (0, None, None)
    assert day.delta_ap["rgb"] == pytest.approx(0.4)
    assert result.correlation.pairs == 3
    assert "| day       | rgb      |     – |" in shares_markdown(result)


def test_a_split_without_an_image_of_all_sensors_is_one_line_and_writes_nothing(run_of, scored, card_with):
    run = run_of(card=card_with(lambda place, image: image["modalities"].pop("depth")))
    with pytest.raises(UserError, match=r"^test: no image has all of rgb, thermal, depth, .* use another split$"):
        shares(run)
    assert not list(run.folder.glob("shares*"))
    assert len(scored) == 1


@pytest.mark.parametrize("failing", [False, True])
def test_no_hook_is_left_behind(run_of, failing):
    run = run_of()
    detector = checkpoint.load(run.best)
    (batch,) = eval_loader(records_of(run), detector.sensors, (96, 128), 4, 0)

    def batches():
        yield batch
        if failing:
            raise KeyboardInterrupt

    if failing:
        with pytest.raises(KeyboardInterrupt):
            measured_weights(detector, batches())
    else:
        weights = measured_weights(detector, batches())
        assert [tuple(w.shape) for w in weights] == [(4, len(node.merged)) for node in detector.pyramid.graph]
        for w in weights:
            torch.testing.assert_close(w.sum(1), torch.ones(4))
    assert not any(merge._forward_hooks for merge in detector.pyramid.merges)


def test_fixed_weights_need_no_image_and_are_the_same_in_each_condition(run_of, scored, monkeypatch):
    run = run_of(fusion="fast")
    monkeypatch.setattr(MODULE, "measured_weights", None)
    result = shares(run)
    wanted = checkpoint.load(run.best).fusion_shares()
    for group in (result.whole, *result.per_condition.values()):
        assert group.shares == {m: pytest.approx(list(wanted[m].values())) for m in MODALITIES}
        assert group.images is None
    assert len({round(share, 3) for m in MODALITIES for share in wanted[m].values()}) > 6
    assert (result.by_image, result.left_out) == (False, None)
    page = shares_markdown(result)
    assert "The weights are fixed: shares are the same in every image and condition." in page
    assert "| images" not in page


def test_what_a_sensor_is_worth_is_what_ap_loses_without_it(run_of, scored):
    result = shares(run_of(fusion="fast"), split="val")
    assert scored == [("val", ()), *(("val", (m,)) for m in MODALITIES)]
    groups = {"whole": result.whole, **result.per_condition}
    wanted = {
        "whole": {"rgb": 0.05, "thermal": 0.2, "depth": 0.0},
        "day": {"rgb": 0.4, "thermal": 0.1, "depth": 0.0},
        "night": {"rgb": -0.1, "thermal": 0.3, "depth": 0.02},
    }
    for name, deltas in wanted.items():
        assert groups[name].delta_ap == pytest.approx(deltas)
    assert groups["night"].ap_without == {"rgb": 0.5, "thermal": 0.1, "depth": 0.38}
    pairs = [(groups[c].mean_share[m], wanted[c][m]) for c in ("day", "night") for m in MODALITIES]
    assert result.correlation == rank_correlation(pairs)
    assert result.correlation.pairs == 6


def test_without_conditions_modalities_alone_are_compared(run_of, scored, card_with):
    result = shares(run_of(card=card_with(lambda place, image: image.pop("condition")), fusion="fast"))
    assert result.per_condition == {}
    whole = result.whole
    assert result.correlation == rank_correlation([(whole.mean_share[m], whole.delta_ap[m]) for m in MODALITIES])
    assert result.correlation.pairs == 3
    page = shares_markdown(result)
    assert "over 3 modalities" in page
    assert "## Per condition" not in page


def test_shares_after_each_cell_are_those_of_its_last_node_at_each_level(run_of, scored):
    run = run_of(fusion="fast")
    cells = shares(run).cells
    assert [one.cell for one in cells] == [0, 1]
    pyramid = checkpoint.load(run.best).pyramid

    def share(source, modality):
        if isinstance(source, Feature):
            return float(source.modality == modality)
        weights = pyramid.merges[source].weight.tolist()
        inputs = pyramid.graph[source].inputs
        return sum(w * share(s, modality) for w, s in zip(weights, inputs, strict=True)) / sum(weights)

    assert len(pyramid.graph) == 8
    assert [pyramid.graph[index].level for index in (1, 2, 3, 5, 6, 7)] == [3, 4, 5] * 2
    for one, nodes in zip(cells, ((1, 2, 3), (5, 6, 7)), strict=True):
        assert one.shares == {m: pytest.approx([share(n, m) for n in nodes], abs=1e-5) for m in MODALITIES}


def test_cells_before_the_modalities_meet_are_left_out(run_of, scored):
    result = shares(run_of(fusion="fast", placement="last"))
    assert [one.cell for one in result.cells] == [2]
    assert result.cells[0].shares == result.whole.shares


def test_levels_that_a_cell_does_not_make_have_a_dash(run_of, scored):
    result = shares(run_of(fusion="fast", pyramid="stdn"))
    assert [share is None for share in result.cells[0].shares["rgb"]] == [True, True, False]
    assert "| 0    | rgb      |     – |     – |" in shares_markdown(result)


@pytest.mark.parametrize(
    ("pairs", "rho"),
    [
        ([(1, 10), (2, 20), (3, 40)], 1.0),
        ([(1, 0.3), (2, 0.2), (3, -5.0)], -1.0),
        # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5)
        ([(1, 1), (2, 3), (2, 2), (3, 4)], 0.9486833),
        # ranks 2, 2, 2, 4, 5 and 1 to 5: 8 / sqrt(8 * 10)
        ([(1, 1), (1, 2), (1, 3), (2, 4), (3, 5)], 0.8944272),
        # ranks 2, 2, 2, 4 and 1, 2.5, 2.5, 4: 3 / sqrt(3 * 4.5)
        ([(0.1, 1), (0.1 + 1e-9, 2), (0.1 - 1e-9, 2 + 1e-9), (0.5, 4)], 0.8164966),
    ],
)
def test_rank_correlation_by_hand(pairs, rho):
    assert rank_correlation(pairs) == Correlation(pytest.approx(rho), len(pairs))
    assert rank_correlation(pairs[::-1]).spearman == pytest.approx(rho)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([], "fewer than 3 pairs"),
        ([(1, 1), (2, 2)], "fewer than 3 pairs"),
        ([(0.5, 1), (0.5 + 1e-8, 2), (0.5 - 1e-8, 3)], "all shares are equal"),
        ([(1, 0.1), (2, 0.1), (3, 0.4 - 0.3)], "all Δ AP are equal"),
    ],
)
def test_where_ranks_say_nothing_there_is_a_reason(pairs, why):
    assert rank_correlation(pairs) == Correlation(None, len(pairs), why)


def test_equal_weights_are_printed_as_no_explanation(run_of, scored):
    result = shares(run_of(fusion="sum"))
    assert result.correlation == Correlation(None, 6, "all shares are equal")
    assert "(Spearman): – (all shares are equal)**, over 6 pairs" in shares_markdown(result)


def test_the_verb_prints_the_page_that_it_writes(run_of, scored, capsys):
    run = run_of(fusion="fast")
    assert main(["shares", str(run.folder)]) == 0
    assert capsys.readouterr().out.strip() == (run.folder / "shares-test.md").read_text().strip()


def test_what_is_printed_as_json_and_written_is_what_evaluate_says(run_of, capsys):
    run = run_of("rgb", "thermal", pyramid_depth=1)
    assert main(["shares", str(run.folder), "--split", "val", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run.folder / "shares-val.json").read_text())
    assert "tested on the val split" in (run.folder / "shares-val.md").read_text()
    assert (run.folder / "shares-val.png").read_bytes().startswith(b"\x89PNG")
    assert "One detector, tested on the val split" in (run.folder / "report.html").read_text()
    scores = {m: Scores(**_stored(run, f"val-without-{m}")) for m in ("rgb", "thermal")}
    whole = Scores(**_stored(run, "val"))
    assert printed["whole"]["delta_ap"] == pytest.approx({m: whole.ap - one.ap for m, one in scores.items()})
    night = {m: one.per_condition["night"]["ap"] for m, one in scores.items()}
    assert printed["per_condition"]["night"]["ap_without"] == night


def _stored(run, name):
    return json.loads((run.folder / f"{name}.json").read_text())["scores"]


def test_the_page_has_a_row_a_modality_with_levels_and_what_it_is_worth(run_of, scored):
    result = shares(run_of(fusion="fast"))
    result.whole.shares["thermal"], result.whole.mean_share["thermal"] = [0.5, 0.251, 1.0], 0.5837
    lines = shares_markdown(result).splitlines()
    assert lines[2] == "| modality |    P3 |    P4 |     P5 |  mean |   Δ AP | Δ AP day | Δ AP night |"
    assert lines[5] == "| thermal  | 50.0% | 25.1% | 100.0% | 58.4% | +0.200 |   +0.100 |     +0.300 |"
    assert [line.split(" ")[1] for line in lines[4:7]] == list(MODALITIES)


@pytest.mark.parametrize(
    ("modalities", "placement", "message"),
    [
        (MODALITIES, "channels", r"^placement: channels merges modalities without weights, .* use first$"),
        (MODALITIES, "boxes", r"^placement: boxes merges modalities without weights, .* use first$"),
        (["rgb"], "first", r"has one modality, rgb, which has no share to show; give a run of several$"),
    ],
)
def test_what_has_no_shares_is_refused_before_any_image_is_read(run_of, scored, modalities, placement, message):
    run = run_of(*modalities, fusion="fast", placement=placement)
    with pytest.raises(UserError, match=message):
        shares(run)
    assert scored == []
    assert not list(run.folder.glob("shares*"))


def test_an_unknown_split_is_one_line_and_writes_nothing(run_of, capsys):
    run = run_of()
    assert main(["shares", str(run.folder), "--split", "tset"]) == 2
    assert "tset" in capsys.readouterr().err
    assert not list(run.folder.glob("shares-tset*"))
