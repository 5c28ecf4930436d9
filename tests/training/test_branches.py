import math

import pytest
import torch
from torch import nn

from mmfuse.model.build import create_detector
from mmfuse.model.detector import Outputs
from mmfuse.model.losses import detection_loss
from mmfuse.recipes import TrainRecipe
from mmfuse.sample import Targets
from mmfuse.training.branches import StepLoss, distillation_loss, drop_modalities

SIDE = 64


def make(modalities="ab", **options):
    torch.manual_seed(0)
    detector = create_detector("d-4", dict.fromkeys(modalities, 1), 2, **options)
    norms = [part for part in detector.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics of what comes next
    with torch.no_grad():
        detector.train()(drawn(modalities)[0])
    for norm in norms:
        norm.momentum = 0.01
        norm.num_batches_tracked.zero_()
    detector.class_head.predict.pointwise.weight.data *= 3  # so that some anchors are confident
    return detector.eval()


def drawn(modalities="ab", batch=3):
    generator = torch.Generator().manual_seed(4)
    images = {m: torch.randn(batch, 1, SIDE, SIDE, generator=generator) for m in modalities}
    boxes = [torch.tensor([[4.0, 4, 30 + 9 * i, 40]]) for i in range(batch)]
    present = {m: torch.ones(batch, dtype=torch.bool) for m in modalities}
    return images, present, Targets(boxes, [torch.tensor([i % 2]) for i in range(batch)])


def alone(detector, images, present):
    """Outputs of each sensor alone, modality by modality, of images with several; and their rows. One by one."""
    several = torch.stack(list(present.values())).sum(0) > 1
    rows, outputs = [], []
    for m in detector.modalities:
        for row in (present[m] & several).nonzero()[:, 0].tolist():
            rows.append(row)
            outputs.append(detector({m: images[m][row : row + 1]}))
    return Outputs(
        *(torch.cat([getattr(o, k) for o in outputs]) for k in ("class_logits", "box_codes")), (SIDE, SIDE)
    ), rows


# ---- dropout


def test_dropout_takes_each_sensor_as_often_as_asked_and_never_all():
    torch.manual_seed(0)
    count = 20000
    present = {m: torch.ones(count, dtype=torch.bool) for m in "abc"}
    shown = drop_modalities(present, 0.4)
    assert all(p.all() for p in present.values())
    table = torch.stack(list(shown.values()))
    assert table.any(0).all()
    # independent draws, of which those that would leave nothing leave one of three
    wanted = 0.6 + 0.4**3 / 3
    assert table.float().mean(1).tolist() == pytest.approx([wanted] * 3, abs=0.015)
    assert (table.sum(0) == 3).float().mean().item() == pytest.approx(0.6**3, abs=0.015)
    both = (table[0] & table[1]).float().mean().item()
    assert both == pytest.approx(0.36, abs=0.015)


def test_dropout_shows_no_sensor_that_is_not_there():
    torch.manual_seed(0)
    present = {"a": torch.tensor([True, False, True, False] * 50), "b": torch.tensor([False, True, True, False] * 50)}
    shown = drop_modalities(present, 0.9)
    assert not any((shown[m] & ~present[m]).any() for m in "ab")
    assert torch.equal(shown["a"] | shown["b"], present["a"] | present["b"])
    assert (shown["a"] != present["a"]).any()
    one = drop_modalities({m: torch.ones(300, dtype=torch.bool) for m in "ab"}, 1.0)
    assert (one["a"] ^ one["b"]).all()
    assert 100 < one["a"].sum() < 200


def test_processes_draw_dropout_of_the_whole_batch():
    present = {m: torch.ones(6, dtype=torch.bool) for m in "abc"}
    torch.manual_seed(0)
    whole = drop_modalities(present, 0.5)
    for rank in (0, 1, 2):
        torch.manual_seed(0)
        shown = drop_modalities({m: mask[rank::3] for m, mask in present.items()}, 0.5, rank, 3)
        assert all(torch.equal(shown[m], whole[m][rank::3]) for m in "abc")


def test_dropout_is_what_the_detector_sees():
    detector, (images, present, targets) = make(), drawn()
    step = StepLoss(detector, TrainRecipe(modality_dropout=0.5, branch_losses=0.0))
    torch.manual_seed(1)
    losses = step(images, present, targets)
    torch.manual_seed(1)
    shown = drop_modalities(present, 0.5)
    assert any(not mask.all() for mask in shown.values())
    torch.testing.assert_close(losses, detector.loss(detector(images, shown), targets))


# ---- branch losses


@pytest.mark.parametrize("modalities", ["ab", "abc"])
@pytest.mark.parametrize("placement", ["first", "every", "last"])
def test_branch_losses_are_those_of_each_sensor_alone(modalities, placement):
    detector, (images, present, targets) = make(modalities, placement=placement), drawn(modalities)
    present["b"] = torch.tensor([True, False, True])
    present["a"] = torch.tensor([True, True, False]) if modalities == "ab" else present["a"]
    with torch.no_grad():
        losses = StepLoss(detector, TrainRecipe(branch_losses=0.5))(images, present, targets)
        fused = detector.loss(detector(images, present), targets)
        out, rows = alone(detector, images, present)
        own = Targets([targets.boxes[r] for r in rows], [targets.labels[r] for r in rows])
        branch = detection_loss(out.class_logits, out.box_codes, detector.anchors((SIDE, SIDE)), own)["total"]
    assert len(rows) == (2 if modalities == "ab" else 8)
    assert abs(branch - fused["total"]) > 0.05
    assert set(losses) == {"class", "box", "branch", "total"}
    for key in ("class", "box"):
        torch.testing.assert_close(losses[key], fused[key], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["branch"], branch, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses["total"], fused["total"] + 0.5 * branch, rtol=1e-4, atol=1e-4)


def test_a_branch_learns_what_its_own_images_show():
    detector, (images, present, targets) = make(), drawn()
    present["b"] = torch.tensor([True, False, True])
    own = Targets([boxes + 20 for boxes in targets.boxes], [1 - labels for labels in targets.labels])
    step = StepLoss(detector, TrainRecipe(branch_losses=1.0))
    with torch.no_grad():
        losses = step(images, present, targets, {"b": own})
        out, rows = alone(detector, images, present)
        assert rows == [0, 2, 0, 2]
        picked = [targets, targets, own, own]
        objects = Targets(
            [t.boxes[r] for t, r in zip(picked, rows, strict=True)],
            [t.labels[r] for t, r in zip(picked, rows, strict=True)],
        )
        branch = detection_loss(out.class_logits, out.box_codes, detector.anchors((SIDE, SIDE)), objects)["total"]
        plain = step(images, present, targets)
    torch.testing.assert_close(losses["branch"], branch, rtol=1e-4, atol=1e-4)
    assert abs(losses["branch"] - plain["branch"]) > 0.05
    torch.testing.assert_close(losses["box"], plain["box"])


def test_backbones_run_once_and_batch_norms_count_one_batch():
    detector, (images, present, targets) = make().train(), drawn()
    present["b"] = torch.tensor([True, False, True])
    rows = {m: [] for m in images}
    for m, backbone in detector.backbones.items():
        backbone.register_forward_hook(lambda _, args, __, m=m: rows[m].append(len(args[0])))
    StepLoss(detector, TrainRecipe(branch_losses=1.0, distillation=1.0, modality_dropout=1.0))(images, present, targets)
    assert rows == {"a": [3], "b": [2]}
    counts = {int(v) for k, v in detector.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {1}


@pytest.mark.parametrize(
    "recipe",
    [{"branch_losses": 1.0}, {"branch_losses": 0.0, "distillation": 1.0}, {"branch_losses": 1.0, "distillation": 1.0}],
)
def test_training_reaches_every_weight_where_sensors_are_missing_here_and_there(recipe):
    detector, (images, present, targets) = make("abc").train(), drawn("abc")
    present |= {"b": torch.tensor([True, False, True]), "c": torch.tensor([False, False, True])}
    images["b"][1] = torch.nan
    losses = StepLoss(detector, TrainRecipe(modality_dropout=0.3, **recipe))(images, present, targets)
    losses["total"].backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in detector.parameters())


@pytest.mark.parametrize("recipe", [{"branch_losses": 1.0}, {"branch_losses": 0.0, "distillation": 1.0}])
def test_images_of_one_sensor_have_no_branches(recipe):
    detector, (images, present, targets) = make(), drawn()
    present = {"a": torch.tensor([True, False, True]), "b": torch.tensor([False, True, False])}
    losses = StepLoss(detector, TrainRecipe(**recipe))(images, present, targets)
    extra = losses.keys() - {"class", "box", "total"}
    assert [losses[key].item() for key in extra] == [0.0]
    torch.testing.assert_close(losses["total"], detector.loss(detector(images, present), targets)["total"])
    one, (images, present, targets) = make("a"), drawn("a")
    alike = StepLoss(one, TrainRecipe(modality_dropout=0.9, **recipe))(images, present, targets)
    torch.testing.assert_close(alike, one.loss(one(images), targets))


# ---- distillation


def outputs(logits, codes):
    return Outputs(torch.tensor(logits)[:, :, None], torch.tensor(codes)[:, :, None].expand(-1, -1, 4), (SIDE, SIDE))


def test_distillation_by_hand():
    """One image, three anchors, one class: the second anchor is confident, the third agrees."""
    probability = [0.05, 0.8, 0.02]
    teacher = outputs([[math.log(p / (1 - p)) for p in probability]], [[0.0, 0.0, 0.0]])
    pupil = outputs([[0.0, 0.0, math.log(0.02 / 0.98)]], [[9.0, 0.3, 9.0]])
    entropy = math.log(2)
    classes = abs(0.05 - 0.5) ** 1.5 * entropy + abs(0.8 - 0.5) ** 1.5 * entropy
    boxes = 50 * 4 * (0.1 * (0.3 - 0.05)) / 4
    divisor = 0.05 + 0.8 + 0.02 + 1
    assert distillation_loss(pupil, teacher).item() == pytest.approx((classes + boxes) / divisor, rel=1e-4)
    assert distillation_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-9)


def test_a_teacher_that_knows_nothing_yet_hardly_counts():
    """At the start all is about the prior, 0.01, on thousands of anchors: their sum must not drown the other losses."""
    logits = torch.full((2, 9000, 3), -4.6)
    codes = torch.zeros(2, 9000, 4)
    teacher, pupil = Outputs(logits, codes, (SIDE, SIDE)), Outputs(logits + 0.7, codes, (SIDE, SIDE))
    assert 0 < distillation_loss(pupil, teacher).item() < 0.02


def test_distillation_moves_the_pupil_alone_and_towards_the_teacher():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 20, n, generator=generator).requires_grad_() for n in (3, 4, 3, 4)]
    pupil, teacher = Outputs(parts[0], parts[1], (SIDE, SIDE)), Outputs(parts[2], parts[3], (SIDE, SIDE))
    distillation_loss(pupil, teacher).backward()
    assert parts[2].grad is None
    assert parts[3].grad is None
    for mine, theirs in ((0, 2), (1, 3)):
        moved = parts[mine].grad != 0
        assert moved.any()
        assert (parts[mine].grad.sign() == (parts[mine] - parts[theirs]).sign())[moved].all()


def test_each_sensor_alone_learns_from_all_of_them():
    detector, (images, present, targets) = make(), drawn()
    present["b"] = torch.tensor([True, False, True])
    losses = StepLoss(detector, TrainRecipe(distillation=0.25, branch_losses=0.0))(images, present, targets)
    with torch.no_grad():
        fused = detector(images, present)
        pupils, rows = alone(detector, images, present)
        teacher = Outputs(fused.class_logits[rows], fused.box_codes[rows], fused.size)
        wanted = distillation_loss(pupils, teacher)
    assert (teacher.class_logits.sigmoid() > 0.1).any()
    assert set(losses) == {"class", "box", "distillation", "total"}
    torch.testing.assert_close(losses["distillation"].detach(), wanted, rtol=1e-3, atol=1e-4)
    total = detector.loss(fused, targets)["total"] + 0.25 * wanted
    torch.testing.assert_close(losses["total"].detach(), total, rtol=1e-3, atol=1e-4)


def test_a_teacher_has_seen_all_sensors():
    detector, (images, present, targets) = make(), drawn(batch=6)
    torch.manual_seed(3)
    losses = StepLoss(detector, TrainRecipe(distillation=1.0, modality_dropout=0.4))(images, present, targets)
    torch.manual_seed(3)
    shown = drop_modalities(present, 0.4)
    whole = (shown["a"] & shown["b"]).nonzero()[:, 0]
    assert 0 < len(whole) < 6
    with torch.no_grad():
        seen = detector.loss(detector(images, shown), targets)
        fused = detector({m: x[whole] for m, x in images.items()})
        pupils = [detector({m: images[m][whole]}) for m in "ab"]
        joined = Outputs(
            *(torch.cat([getattr(p, k) for p in pupils]) for k in ("class_logits", "box_codes")), fused.size
        )
        teacher = Outputs(fused.class_logits.repeat(2, 1, 1), fused.box_codes.repeat(2, 1, 1), fused.size)
    torch.testing.assert_close(
        losses["distillation"].detach(), distillation_loss(joined, teacher), rtol=1e-3, atol=1e-4
    )
    for key in ("class", "box"):
        torch.testing.assert_close(losses[key].detach(), seen[key], rtol=1e-4, atol=1e-4)
