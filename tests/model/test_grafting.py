import pytest
import torch
from tiny import inputs, make
from torch import nn

from mmfuse.errors import UserError
from mmfuse.model.ensemble import BoxEnsemble
from mmfuse.model.fusion import FUSIONS, Merge
from mmfuse.model.grafting import FAINT, graft, keep_open, misfit
from mmfuse.model.nodes import Feature
from mmfuse.sample import Targets

pytestmark = pytest.mark.usefixtures("tiny_sizes")


def single(modality, **options):
    """A detector of one modality that looks trained: no weight or statistic is at its start, one edge is shut."""
    detector = make(modality, **options)
    generator = torch.Generator().manual_seed(ord(modality))
    for name, value in detector.state_dict().items():
        if value.is_floating_point() and not name.startswith(("mean_", "std_")):
            noise = torch.rand(value.shape, generator=generator)
            value.mul_(0.8 + 0.4 * noise)
            if "pyramid" in name and name.endswith(("merge.weight", "norm.bias", "running_mean")):
                value.copy_(noise + 0.1 if "merge" in name else noise - 0.5)
            if ".gates." in name:
                value.copy_(noise - 0.5)
    shut = next((node.merge for node in detector.pyramid.nodes if node.merge.count > 1), None)
    if shut is not None and shut.rectified:
        shut.weight.data[1] = -0.2
    return detector.eval()


def started(modalities="ab", main="b", sources=None, **options):
    own = {k: v for k, v in options.items() if k != "placement"}
    own["fusion"] = (sources or {}).get("fusion", own.get("fusion", "fast"))
    singles = {m: single(m, **own) for m in modalities}
    detector = make(modalities, **options)
    assert not any(misfit(detector, m, s) for m, s in singles.items())
    graft(detector, singles, main)
    return detector, singles


ARRANGEMENTS = [
    *({"fusion": fusion} for fusion in FUSIONS if fusion != "sum"),
    *(
        {"fusion": fusion, "sources": {"fusion": theirs}}
        for theirs, fusion in (
            *(("fast", "softmax"), ("fast", "gated_spatial"), ("softmax", "fast"), ("softmax", "channel")),
            *(("sum", "unbounded"), ("sum", "gated")),
        )
    ),
    *({"pyramid": p, "pyramid_depth": 2} for p in ("bifpn", "fpn", "panet", "fully_connected", "quad_fpn", "m2det")),
    *({"pyramid": p, "pyramid_depth": 2, "placement": "every"} for p in ("bifpn", "m2det", "stdn")),
    {"modalities": "abc", "main": "c"},
    {"modalities": "abc", "main": "a", "flavour": "symmetric", "size": "deep"},
]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS, ids=str)
def test_it_starts_from_the_best_one_and_can_learn_from_all(arrangement):
    detector, singles = started(**arrangement)
    side = 256 if arrangement.get("size") == "deep" else 128
    main = arrangement.get("main", "b")
    images = inputs(detector.modalities, height=side, width=side)
    with torch.no_grad():
        out = detector(images)
        theirs = {m: one({m: images[m]}) for m, one in singles.items()}
    for key in ("class_logits", "box_codes"):
        wanted = getattr(theirs[main], key)
        assert wanted.std() > 0.05
        distances = {
            m: (getattr(out, key) - getattr(one, key)).abs().mean() / wanted.std() for m, one in theirs.items()
        }
        assert distances[main] < 0.01
        assert all(d > 0.2 for m, d in distances.items() if m != main)
    targets = Targets([torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([[0.0, 0, 99, 99]])], [torch.tensor([1])] * 2)
    detector.loss(detector.train()(images), targets)["total"].backward()
    for name, part in detector.named_modules():
        if isinstance(part, Merge):
            if part.count > 1:
                assert (part.weight.grad.reshape(part.count, -1) != 0).any(1).all(), name
            if part.rectified:
                assert (part.weight >= FAINT).all()
    for m in detector.modalities:
        assert all(p.grad is not None for p in detector.backbones[m].parameters())
        assert any(p.grad.any() for p in detector.backbones[m].parameters())


def test_each_modality_keeps_its_own_branch():
    detector, singles = started(pyramid_depth=2, placement="every")

    def branches(of):
        """The convolution into the pyramid for each edge of a modality, by the node and what it reads."""
        return {
            (index, source): module.laterals[str(place)].state_dict()
            for index, (node, module) in enumerate(zip(of.pyramid.graph, of.pyramid.nodes, strict=True))
            for place, source in enumerate(node.inputs)
            if isinstance(source, Feature) and str(place) in module.laterals
        }

    found, checked = branches(detector), 0
    for m, one in singles.items():
        for key, state in branches(one).items():
            checked += 1
            assert all(torch.equal(found[key][name], value) for name, value in state.items())
        for part, theirs in (
            (detector.backbones[m], one.backbones[m]),
            (detector.pyramid.extend[m], one.pyramid.extend[m]),
        ):
            assert all(torch.equal(part.state_dict()[k], v) for k, v in theirs.state_dict().items())
    assert checked > 6
    assert torch.equal(detector.class_head.predict.pointwise.weight, singles["b"].class_head.predict.pointwise.weight)
    assert torch.equal(detector.mean_a, make().mean_a)


def test_gates_stay_with_their_edges():
    detector, singles = started(fusion="gated")
    edges = {}
    for one in (*singles.values(), detector):
        for index, (node, module) in enumerate(zip(one.pyramid.graph, one.pyramid.nodes, strict=True)):
            for source, gate in zip(node.inputs, module.merge.gates, strict=True):
                edges.setdefault((index, source), []).append(gate.weight)
    for (_, source), weights in edges.items():
        same = [torch.equal(w, weights[-1]) for w in weights]
        assert same[:-1] == [True] if isinstance(source, Feature) else same == [False, True, True]


def test_a_modality_without_a_run_starts_fresh():
    one, detector = single("a"), make("abc")
    fresh = {k: v.clone() for k, v in detector.state_dict().items()}
    graft(detector, {"a": one}, "a")
    for m in "bc":
        assert all(torch.equal(v, fresh[f"backbones.{m}.{k}"]) for k, v in detector.backbones[m].state_dict().items())
    images = inputs("abc")
    with torch.no_grad():
        wanted = one({"a": images["a"]}).class_logits
        assert (detector(images).class_logits - wanted).abs().mean() < 0.02 * wanted.std()


@pytest.mark.parametrize("options", [{}, {"fusion": "sum"}, {"pyramid": "nas_fpn"}, {"share_backbone": True}], ids=str)
def test_one_modality_goes_on_from_itself(options):
    one, detector = single("a", **options), make("a", **options)
    graft(detector, {"a": one}, "a")
    with torch.no_grad():
        got, wanted = detector(inputs("a")), one(inputs("a"))
    torch.testing.assert_close(
        got.class_logits, wanted.class_logits, rtol=0, atol=0.05 * float(wanted.class_logits.std())
    )


def test_members_of_an_ensemble_become_the_runs():
    singles = {m: single(m) for m in "ab"}
    detector = make(placement="boxes")
    assert isinstance(detector, BoxEnsemble)
    assert not any(misfit(detector, m, one) for m, one in singles.items())
    graft(detector, singles, "a")
    with torch.no_grad():
        out = detector(inputs())
        for m, one in singles.items():
            assert torch.equal(out.members[m].class_logits, one({m: inputs()[m]}).class_logits)


def test_edges_are_kept_open():
    fast, soft = make(fusion="fast"), make(fusion="softmax")
    fast.pyramid.nodes[0].merge.weight.data.copy_(torch.tensor([-0.3, 0.7, 0.0, 1.0]))
    soft.pyramid.nodes[0].merge.weight.data.fill_(-2)
    keep_open(nn.ModuleList([fast, soft]))
    torch.testing.assert_close(fast.pyramid.nodes[0].merge.weight.data, torch.tensor([FAINT, 0.7, FAINT, 1.0]))
    assert (soft.pyramid.nodes[0].merge.weight == -2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 4}, "has classes ['0', '1', '2', '3'], the recipe ['0', '1', '2']"),
        ({"size": "small"}, "has model.size 'small', the recipe 'tiny'"),
        ({"pyramid": "fpn"}, "has model.pyramid 'fpn', the recipe 'bifpn'"),
        ({"flavour": "symmetric"}, "has model.flavour 'symmetric', the recipe 'tf'"),
        ({"backbone": "test_convnext"}, "has model.backbone 'test_convnext', the recipe 'test_resnet'"),
        ({"width": 16}, "has model.width 16, the recipe 8"),
        ({"pyramid_depth": 2}, "has model.pyramid_depth 2, the recipe 1"),
        ({"head_depth": 2}, "has model.head_depth 2, the recipe 1"),
        ({"fusion": "channel"}, "merges by channel, which fast can't go on from; set model.fusion: channel"),
        ({"share_backbone": True}, "has model.share_backbone True, the recipe False"),
    ],
)
def test_a_run_that_does_not_fit_says_why(options, message):
    problem = misfit(make(), "a", make("a", **options))
    assert problem is not None
    assert problem.startswith(message)
    assert "\n" not in problem


def test_names_and_numbers_that_are_written_out_fit():
    assert misfit(make(), "a", make("a", backbone="test_resnet", width=8, pyramid_depth=1, fusion="softmax")) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"placement": "channels"},
            "placement channels can't start from single modalities; use model.placement: first",
        ),
        ({"placement": "last"}, "placement last can't start"),
        ({"fusion": "sum"}, "fusion sum can't start .*; use model.fusion: fast"),
        ({"pyramid": "nas_fpn"}, "pyramid nas_fpn can't start .*; use model.pyramid: bifpn"),
    ],
)
def test_what_can_t_start_so_is_refused(options, message):
    own = {k: v for k, v in options.items() if k == "pyramid"}
    detector = make(**options)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    with pytest.raises(UserError, match=f"^{message}"):
        graft(detector, {m: make(m, **own) for m in "ab"}, "a")
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())
