"""Doubt: how far a sensor's features are from what training saw, which sensors aren't believed for it, and what is
found where nobody knows whom to believe.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.export import register_dataclass

from mmfuse.errors import UserError, unknown_name
from mmfuse.model.agreement import Witness, strangers
from mmfuse.model.layers import Exact
from mmfuse.model.postprocess import Selection, select
from mmfuse.sample import Detections

Doubting = Literal["drop", "weigh", "report", "off"]
"""What comes of doubt: a doubted sensor counts as missing, or for less the more it is doubted, or is only told, or
nobody looks.
"""

LEAVING_OUT = ("drop", "weigh")
"""What leaves out sensors that aren't believed at all."""

SHRINKAGE = 0.2
"""How far the covariance is drawn to that of features that are independent."""


_MOST_PADDING = 0.9


class Doubt(Exact):
    """Judges one sensor of each image by its backbone's finest map; from 1 on the sensor isn't believed.

    An image is described by the mean and the logarithm of the deviation of every channel over its places. What is told
    is the squared Mahalanobis distance of the description from those of training (Lee et al., NeurIPS 2018), relative
    to `threshold`. Each number is first centred and scaled by median and median deviation and passed through asinh, so
    that some wild channels don't drown all others; the covariance is shrunk towards the identity (Ledoit & Wolf, 2004).
    So what is rare in training, such as one day of fog in twenty, is far by little, and what never was by much. Batch
    norm's own statistics (Neural Mean Discrepancy, CVPR 2022, compares with these) are those of places, not of images,
    and don't know which channels go together. Coarser maps tell what the image shows, the finest how it was taken: two
    large blue cars are far from training in them, and noise is hardly farther.

    A fresh one believes everything that is finite.
    """

    centre: Tensor
    spread: Tensor
    mean: Tensor
    precision: Tensor
    threshold: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        count = 2 * channels
        for name, value in (
            ("centre", torch.zeros(count)),
            ("spread", torch.ones(count)),
            ("mean", torch.zeros(count)),
            ("precision", torch.eye(count)),
            ("threshold", torch.tensor(torch.inf)),
        ):
            self.register_buffer(name, value)

    def forward(self, finest: Tensor) -> Tensor:
        """Returns the doubt (B,) float32 of a backbone's finest map (B, C, h, w): inf where it isn't finite."""
        with torch.autocast(finest.device.type, enabled=False):
            distance = self.distance(describe(finest))
        return torch.where(distance.isfinite(), distance / self.threshold, torch.inf)

    def distance(self, descriptions: Tensor) -> Tensor:
        """Returns the distance (B,) of `descriptions` (B, 2 C) from training's, half of which are nearer than 1."""
        apart = self._tamed(descriptions) - self.mean
        return (apart @ self.precision * apart).sum(1)

    def fit(self, descriptions: Tensor) -> None:
        """Takes the `descriptions` (N, 2 C) of training images for usual; the threshold is to be set after it."""
        self.centre.copy_(descriptions.median(0).values)
        deviation = (descriptions - self.centre).abs().median(0).values
        self.spread.copy_(deviation + 0.05 * deviation.median() + 1e-8)
        tamed = self._tamed(descriptions).double()
        self.mean.copy_(tamed.mean(0))
        scale = tamed.std(0, correction=0) + 1e-3
        usual = (tamed - tamed.mean(0)) / scale
        correlation = usual.T @ usual / len(usual)
        shrunk = torch.lerp(correlation, torch.eye(len(scale), dtype=scale.dtype, device=scale.device), SHRINKAGE)
        self.precision.copy_(shrunk.inverse() / scale / scale[:, None])
        self.precision /= self.distance(descriptions).median()
        self.threshold.fill_(torch.inf)

    def _tamed(self, descriptions: Tensor) -> Tensor:
        return torch.asinh((descriptions - self.centre) / self.spread)


def describe(finest: Tensor) -> Tensor:
    """Returns the mean and the logarithm of the deviation of every channel of a map (B, C, h, w), (B, 2 C) float32."""
    places = finest.float().flatten(2)
    mean = places.mean(2, keepdim=True)
    deviation = torch.linalg.vector_norm(places - mean, dim=2) / places.shape[2] ** 0.5  # var_mean is slow on a CPU
    return torch.cat((mean[..., 0], torch.log(deviation + 1e-3)), 1)


def blank(images: Tensor) -> Tensor:
    """Returns which images (B,) of (B, C, H, W) are one value throughout, but for whole rows and columns (padding).

    Such a sensor says nothing, however near its features are to training's: where all are doubted, it isn't the one to
    keep. Every fourth row is looked at.
    """
    looked_at = images[..., ::4, :]
    other = (looked_at != looked_at[..., :1, :1]).any(1)
    in_rows_and_columns = (other == (other[:, :1] | other[..., :1])).all((1, 2))
    return in_rows_and_columns & (other.sum((1, 2)) < _MOST_PADDING * other.shape[1] * other.shape[2])


@dataclass(frozen=True)
class Judgement:
    """What is thought of the sensors of a batch: their `doubts` (B, M), NaN where one isn't there, which of them are
    `dropped` (B, M) bool, and which are `disagreeing` (B, M) bool: believed by themselves, but none of the other
    believed ones shows the same scene. `belief` (B, M) is what each counts for, from 0 to 1 for the one that is
    believed most; None where all that aren't dropped count alike.
    """

    doubts: Tensor
    dropped: Tensor
    disagreeing: Tensor
    belief: Tensor | None = None

    @staticmethod
    def of(doubts: Tensor, there: Tensor, doubting: Doubting, witness: Witness | None = None) -> "Judgement":
        """Drops, if so asked, all sensors that are `there` (B, M) and doubted, from 1 on; where no other is left, all
        but the one that is doubted least.

        Of the believed ones those are dropped too that disagree while others agree with one another; and those that are
        stuck, unless they clearly agree with a believed one that isn't, or nothing else is left: a doubted one is
        better than old news. Which of two sensors shows the wrong scene nothing else tells.

        To "weigh", only what is doubted beyond all measure is dropped so, and can't vouch for a stuck one; of all
        others the belief is 1 / (1 + d^4) of a doubt d: a half where else belief ends.
        """
        doubted = there & (doubts >= 1)
        disagreeing = gone = torch.zeros_like(there)
        left = there
        if witness is not None:
            others = _pairs(there & ~doubted)
            fresh = ~witness.stuck[:, None]
            disagreeing = strangers(witness.agrees, others)
            others_agree = (others & fresh & witness.agrees).flatten(1).any(1, keepdim=True)
            vouching = _pairs(there & ~(doubts.isinf() if doubting == "weigh" else doubted)) & fresh
            stale = (disagreeing & others_agree) | (witness.stuck & ~(vouching & witness.clearly).any(2))
            some_left = (there & ~stale & ~doubts.isinf()).any(1, keepdim=True)
            gone = there & stale & some_left
            left = there & ~gone
        if doubting not in LEAVING_OUT:
            return Judgement(doubts, torch.zeros_like(there), disagreeing)
        lost = gone | (doubted if doubting == "drop" else there & doubts.isinf())
        least = torch.where(left, doubts.clamp(max=1e30), torch.inf).argmin(1, keepdim=True)  # one that is left
        alone = (there == lost).all(1, keepdim=True)
        dropped = lost & ~torch.zeros_like(lost).scatter(1, least, alone)
        if doubting == "drop":
            return Judgement(doubts, dropped, disagreeing)
        log_belief = -torch.log1p(doubts.clamp(max=1e6) ** 4).masked_fill(dropped | ~there, torch.inf)
        return Judgement(doubts, dropped, disagreeing, (log_belief - log_belief.amax(1, keepdim=True)).exp())

    @staticmethod
    def with_broken(
        judgement: "Judgement | None", broken: Mapping[str, Tensor], modalities: Sequence[str], doubting: Doubting
    ) -> "Judgement":
        """Adds to what is thought of `modalities`, None for nothing, that `broken` ones (B,) are never believed."""
        sound = torch.zeros_like(next(iter(broken.values())))
        gone = torch.stack([broken.get(m, sound) for m in modalities], 1)
        doubts = torch.full(gone.shape, torch.nan) if judgement is None else judgement.doubts.float().cpu()
        dropped, disagreeing = (
            (torch.zeros_like(gone), torch.zeros_like(gone))
            if judgement is None
            else (judgement.dropped.cpu(), judgement.disagreeing.cpu())
        )
        left_out = gone & (doubting in LEAVING_OUT)
        return Judgement(doubts.masked_fill(gone, torch.inf), dropped | left_out, disagreeing)

    def tell(self, found: Sequence[Detections], modalities: Sequence[str]) -> list[Detections]:
        """Returns the detections of the batch's images with what is thought of the sensors of each."""

        def named(rows: Tensor) -> list[tuple[str, ...]]:
            return [tuple(m for m, one in zip(modalities, row, strict=True) if one) for row in rows.tolist()]

        each = zip(found, self.doubts.tolist(), named(self.dropped), named(self.disagreeing), strict=True)
        return [
            replace(
                one,
                doubt={m: value for m, value in zip(modalities, values, strict=True) if not math.isnan(value)},
                dropped=dropped,
                disagreeing=disagreeing,
            )
            for one, values, dropped, disagreeing in each
        ]


register_dataclass(Judgement)


def _pairs(those: Tensor) -> Tensor:
    """Returns which two different ones (B, M, M) both are of `those` (B, M)."""
    itself = torch.eye(those.shape[1], dtype=torch.bool, device=those.device)
    return those[:, :, None] & those[:, None] & ~itself


def check_doubting(doubt: str) -> None:
    """Refuses a word that isn't a `Doubting`.

    Raises:
        UserError: it isn't.
    """
    if doubt not in get_args(Doubting):
        raise UserError(f"doubt: {unknown_name(doubt, get_args(Doubting), 'way to doubt')}")


def second_look(
    look: Callable[..., list[Detections]],
    found: list[Detections],
    images: Mapping[str, Tensor],
    contents: Tensor | None,
    selection: Selection,
    doubt: Doubting,
) -> list[Detections]:
    """Returns what is `found` in images, but for those in which each of several sensors shows another scene, and no
    sensor that was judged and not dropped shows the same as another: there it is what each finds alone, `shared`.

    Features of different scenes merge into objects that are in neither. One of the scenes is the true one, and nothing
    tells which. Only these images are looked at again, by `look` (see `Finder.look`), unless `doubt` leaves nothing
    out.
    """
    if doubt not in LEAVING_OUT:
        return found
    odd = {row: names for row, one in enumerate(found) if len(names := _left(one)) > 1 and names <= {*one.disagreeing}}
    alone: dict[int, list[Detections]] = {row: [] for row in odd}
    for m in images:
        rows = [row for row, names in odd.items() if m in names]
        if not rows:
            continue
        seen = None if contents is None else contents[rows]
        each = look({m: images[m][rows]}, {}, seen, selection, doubt)
        for row, one in zip(rows, each, strict=True):
            alone[row].append(one)
    together = {row: shared(each, selection).to(found[row].boxes.device) for row, each in alone.items()}
    return [
        replace(one, **{name: getattr(together[row], name) for name in ("boxes", "scores", "labels")})
        if row in together
        else one
        for row, one in enumerate(found)
    ]


def _left(found: Detections) -> set[str]:
    """Returns the sensors that were judged and not dropped."""
    return {m for m in found.doubt if m not in found.dropped}


def shared(found: Sequence[Detections], selection: Selection) -> Detections:
    """Returns all that M sensors found alone in an image of which one of them is right, each as likely as another.

    So what a sensor finds is there with 1 / M of the probability that it gives. Boxes that overlap are chosen from as
    in an image that sensors agree on.
    """
    boxes, scores, labels = (torch.cat([getattr(one, name) for one in found]) for name in ("boxes", "scores", "labels"))
    best = scores.argsort(descending=True, stable=True)
    (chosen,) = select(boxes[best][None], scores[best][None] / len(found), labels[best][None], selection)
    return chosen


def broken_sensors(
    images: Mapping[str, Tensor], encoded: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Returns which images (B,) of each sensor hold values that aren't finite once `encoded`, None for none of all.

    Integers always are. The host reads it.

    Raises:
        UserError: no sensor of an image is left.
    """
    broken = {
        m: torch.zeros(len(x), dtype=torch.bool)
        if not images[m].is_floating_point()
        else ~x.flatten(1).sum(1).isfinite().cpu()
        for m, x in encoded.items()
    }
    if not any(bool(gone.any()) for gone in broken.values()):
        return None
    there = {m: present[m].cpu() if m in present else torch.ones_like(gone) for m, gone in broken.items()}
    left = torch.stack([there[m] & ~gone for m, gone in broken.items()]).any(0)
    if not bool(left.all()):
        row = int((~left).nonzero()[0, 0])
        names = ", ".join(m for m, gone in broken.items() if gone[row])
        raise UserError(
            f"images: {names} of image {row} holds values that aren't finite, and no other sensor is there; mend it"
        )
    return broken
