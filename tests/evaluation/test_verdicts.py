import pytest

from mmfuse.evaluation.results import Fault
from mmfuse.evaluation.significance import Difference
from mmfuse.evaluation.verdicts import fault_verdict, verdict_on


def between(low, high):
    return Difference((low + high) / 2, low, high, 9)


@pytest.mark.parametrize(
    ("intervals", "seeds", "behind", "verdict"),
    [
        ([(0.0, 0.2), (0.1, 0.3)], 3, 0, "yes"),
        ([(0.0, 0.0)], 5, 0, "yes"),
        ([(0.1, 0.2)], 3, 1, "no"),
        ([(0.1, 0.2), (-0.001, 0.2)], 3, 0, "no"),
        ([(0.1, 0.2), (-0.2, -0.1)], 3, 0, "no"),
        ([(0.1, 0.2), (-0.2, -0.1)], 1, 0, "no"),
        ([(0.1, 0.2)], 2, 0, "not shown"),
        ([(-0.1, 0.2)], 2, 1, "not shown"),
    ],
)
def test_yes_takes_intervals_and_seeds_and_no_takes_one_of_both(intervals, seeds, behind, verdict):
    assert verdict_on([between(*interval) for interval in intervals], seeds, behind) == verdict


def fault(low, high, ap=(0.4, 0.4, 0.4), without=(0.3, 0.3, 0.3), name="noise", severity=5):
    return Fault(name, "rgb", severity, ap, without, between(low, high), 1.0, 0.5)


def test_the_verdict_names_the_worst_fault_and_counts_all():
    faults = [fault(0.1, 0.2), fault(-0.005, 0.02, severity=2), fault(-0.3, 0.2, name="fog"), fault(0.0, 0.0)]
    given = fault_verdict("both", faults)
    assert (given.model, given.verdict) == ("both", "no")
    assert given.text == (
        "both: fault ≥ without it: no (at worst -0.050 AP, fog 5 of rgb, 95 % interval -0.300 to +0.200; not below in "
        "3 of 4, below in 0, not shown in 1; never behind in 3 of 3 seeds)"
    )
    below = fault_verdict("both", [*faults, fault(-0.02, -0.01, name="frozen")])
    assert "at worst -0.015 AP, frozen 5 of rgb, " in below.text
    assert "below in 1, " in below.text
    assert fault_verdict("both", [fault(0.0, 0.1)] * 4).verdict == "yes"


def test_a_seed_that_any_fault_puts_behind_is_a_no():
    faults = [fault(0.0, 0.1), fault(0.0, 0.1, ap=(0.4, 0.2, 0.4)), fault(0.0, 0.1, ap=(0.4, 0.29, 0.4))]
    given = fault_verdict("both", faults)
    assert given.verdict == "no"
    assert given.text.endswith("; never behind in 2 of 3 seeds)")


def test_one_seed_shows_nothing_but_a_no():
    alone = {"ap": (0.4,), "without": (0.3,)}
    given = fault_verdict("both", [fault(0.1, 0.2, **alone)])
    assert given.verdict == "not shown"
    assert given.text.endswith("; never behind in 1 of 1 seeds, compare runs of 3)")
    assert fault_verdict("both", [fault(-0.2, -0.1, **alone)]).verdict == "no"
    assert fault_verdict("both", []) is None
