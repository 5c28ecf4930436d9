"""Splits that are a share of another one: drawn by sequence or by image, alike on every machine."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import partial

from mmfuse.data.annotations.cards import Card
from mmfuse.errors import UserError

Name = tuple[str, str | None]
"""The name of an image, and that of its sequence or None."""


def drawn(card: Card, split: str, names: Sequence[Name]) -> list[bool]:
    """Returns which images are in a split, of all that it is drawn from; all are where it is no draw.

    Images of one sequence, or of one name, stay together. These groups are gone through in the order of their hashes
    with the split's seed, and taken where that comes nearer to its share, at least one; what no split takes is train's.

    Raises:
        UserError: there are fewer groups than splits.
    """
    shares = {name: rule for name, rule in card.splits.items() if rule.share is not None}
    if not shares or split not in ("train", *shares):
        return [True] * len(names)
    groups = [("image", name) if sequence is None else ("sequence", sequence) for name, sequence in names]
    left = Counter(groups)
    if len(left) <= len(shares):
        kinds = " or ".join(sorted({f"{kind}s" for kind, _ in left})) or "images"
        splits, fix = ", ".join(["train", *shares]), "give each images of its own, or add some"
        raise UserError(f"{card.path}: splits: {len(left)} {kinds} can't be shared by {splits}; {fix}")
    owners = dict.fromkeys(left, "train")
    for number, (name, rule) in enumerate(shares.items()):
        wanted, taken = (rule.share or 0) * len(names), 0
        kept_back = len(shares) - number  # one group for each split that comes later, and for train
        ranked = sorted(left, key=partial(_rank, rule.seed))
        for group in ranked:
            if len(left) > kept_back and abs(taken + left[group] - wanted) < abs(taken - wanted):
                taken += left.pop(group)
                owners[group] = name
        if not taken:
            smallest = min(ranked, key=left.__getitem__)
            del left[smallest]
            owners[smallest] = name
    return [owners[group] == split for group in groups]


def _rank(seed: int, group: tuple[str, str]) -> bytes:
    return hashlib.sha256(f"{seed} {' '.join(group)}".encode("utf-8", "surrogatepass")).digest()
