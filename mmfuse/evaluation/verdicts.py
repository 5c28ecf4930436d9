"""How differences in AP become a verdict: "yes", "no" or "not shown"."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

from mmfuse.evaluation.results import Fault, Verdict
from mmfuse.evaluation.significance import Difference

SEEDS_NEEDED = 3
"""How many training seeds a verdict takes, but for a "no" that images alone show."""


def verdict_on(differences: Collection[Difference], seeds: int, behind: int) -> Literal["yes", "no", "not shown"]:
    """Returns whether a model is at least as good as all others, given its difference to each.

    "no" is an interval below zero. From three `seeds` on, "yes" takes intervals that reach no lower than zero, and no
    seed in which it is `behind` another; "no" is all else. With fewer, all else is "not shown".
    """
    if any(d.below for d in differences):
        return "no"
    if seeds < SEEDS_NEEDED:
        return "not shown"
    return "no" if behind or any(d.low < 0 for d in differences) else "yes"


def fault_verdict(model: str, faults: Sequence[Fault]) -> Verdict | None:
    """Returns whether a model under each fault is at least as good as without the sensor; None without any fault."""
    if not faults:
        return None
    worst = min(faults, key=lambda fault: (not fault.difference.below, fault.difference.low))
    seeds, ahead = len(worst.ap), worst.difference
    behind = {i for f in faults for i, (ap, without) in enumerate(zip(f.ap, f.ap_without, strict=True)) if ap < without}
    verdict = verdict_on([fault.difference for fault in faults], seeds, len(behind))
    counts = Counter(fault.difference.judgement for fault in faults)
    figures = f"at worst {ahead.mean:+.3f} AP, {worst.corruption} {worst.severity} of {worst.modality}, "
    figures += f"95 % interval {ahead.low:+.3f} to {ahead.high:+.3f}; not below in {counts['not below']} of "
    figures += f"{len(faults)}, below in {counts['below']}, not shown in {counts['not shown']}; "
    figures += f"never behind in {seeds - len(behind)} of {seeds} seeds"
    if verdict == "not shown":
        figures += f", compare runs of {SEEDS_NEEDED}"
    return Verdict(model, verdict, f"{model}: fault ≥ without it: {verdict} ({figures})")
