"""Results that nobody measured, for tests of reports."""

from mmfuse.environment import Environment
from mmfuse.evaluation.coco import Scores
from mmfuse.evaluation.curves import ClassCurve, Confusion, Curves
from mmfuse.evaluation.results import (
    Clean,
    Comparison,
    Curve,
    DifferenceTo,
    Fault,
    ModelRow,
    Robustness,
    SubsetRow,
    Verdict,
)
from mmfuse.evaluation.significance import Difference


def scores(ap, day, night, person, car):
    others = dict.fromkeys(("ap75", "ap_small", "ap_medium", "ap_large"), None)
    others |= dict.fromkeys(("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large"), None)
    return Scores(
        ap=ap,
        ap50=ap + 0.2,
        per_class={"person": person, "car": car, "cat": None},
        per_condition={
            "day": {"ap": day, "ap50": day, "images": 5, "boxes": 9},
            "night": {"ap": night, "ap50": None, "images": 5, "boxes": 8},
        },
        images=10,
        boxes=17,
        **others,
    )


def model(name, modalities, ap, difference=None, per_condition=None, subsets=()):
    return ModelRow(
        name=name,
        modalities=modalities,
        seeds=(0, 1),
        epochs=3,
        ap=ap,
        ap50=tuple(a + 0.2 for a in ap),
        scores=tuple(scores(a, a + 0.1, a - 0.1, a, a) for a in ap),
        parameters=3_880_000,
        gmacs=2.5,
        latency_ms=12.34,
        difference=difference,
        differences={},
        per_condition=per_condition or {},
        subsets=subsets,
        faults=(),
    )


def ahead(mean, low, high):
    return Difference(mean, low, high, 1000)


def subset(modalities, ap, alone=None, share=None):
    return SubsetRow(modalities, tuple(scores(a, a + 0.1, a - 0.1, a, a) for a in ap), alone, share)


def comparison_of_three():
    """Two single sensors and their fusion, on two conditions."""
    return Comparison(
        card="street",
        split="test",
        digest="ab",
        models=(
            model("rgb", ("rgb",), (0.30, 0.32), DifferenceTo(-0.04, -0.07, 0.01, 1000, "thermal")),
            model("thermal", ("thermal",), (0.34, 0.36)),
            model(
                "both",
                ("rgb", "thermal"),
                (0.42, 0.44),
                DifferenceTo(0.08, 0.05, 0.11, 1000, "rgb"),
                {
                    "day": {"rgb": ahead(0.1, 0.05, 0.2), "thermal": ahead(0.03, -0.01, 0.05)},
                    "night": {"rgb": ahead(0.0, -0.09, 0.1), "thermal": ahead(-0.03, -0.05, -0.01)},
                },
                (
                    subset(("rgb", "thermal"), (0.42, 0.44)),
                    subset(("rgb",), (0.2, 0.3), "rgb", 0.806),
                    subset(("thermal",), (0.36, 0.36)),
                ),
            ),
        ),
        reference="thermal",
        verdicts=(Verdict("both", "yes", "both ≥ best single: yes (+0.080 AP)"),),
        fault_verdicts=(),
        same_budget=True,
        command="mmfuse compare a b c",
        date="2026-01-02",
        hardware="2 cores",
    )


FAULT = Fault("noise", "rgb", 4, (0.2, 0.3), (0.31, 0.33), Difference(-0.07, -0.1, -0.03, 1000), 12.5, 0.126)


def robustness(*curves):
    ap, ap50 = (0.5, 0.4, 0.3, 0.2, 0.1, 0.0), (0.8, 0.8, 0.8, 0.8, 0.8, 0.4)
    return Robustness(
        split="val",
        digest="ab" * 32,
        detector="cd" * 32,
        seed=3,
        rounds=1000,
        name="street",
        images=7,
        clean=Clean(0.5, 0.8),
        curves=tuple(Curve(name, m, "px", (4, 8, 15, 22.5, 30), ap, ap50, 0.5, area) for name, m, area in curves),
        faults=(),
        verdict=None,
        environment=Environment("2026-01-01", "3.11", {"torch": "2.10"}, "a card", 1),
    )


def curves(precision=1.0, classes=("person", "car"), counts=((6, 1, 3), (0, 4, 2), (5, 0, 0)), chosen_on="val"):
    """Curves that fall from that precision; the last of several classes has no object."""
    falling = tuple(precision * (1 - i / 100) for i in range(101))
    curve = ClassCurve(falling, falling, tuple(value / 2 for value in falling))
    per_class = {name: None if 0 < i == len(classes) - 1 else curve for i, name in enumerate(classes)}
    return Curves(curve, per_class, Confusion(classes, dict.fromkeys(classes, 0.4), chosen_on, counts))
