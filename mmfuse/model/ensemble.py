"""Late fusion: a detector for each modality, whose boxes are merged by the probabilities that they give (ProbEn)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.nn.utils.rnn import pad_sequence

from mmfuse import boxes as box_maths
from mmfuse.errors import UserError
from mmfuse.model.agreement import Agreement, Witness
from mmfuse.model.detector import CLASS_PRIOR, Detector, Outputs
from mmfuse.model.doubt import Doubt, Doubting, Judgement
from mmfuse.model.postprocess import DEFAULT, Selection, suppress
from mmfuse.model.presence import Presence
from mmfuse.sample import Detections, Sight, Targets

CLAMP = 1e-6
"""Scores are held this far from 0 and 1, so that their log-odds are finite."""


@dataclass(frozen=True)
class EnsembleOutputs:
    """What each modality's detector says of the images that have it: `members`, and these images: `rows` (n,) int64 on
    the host. Only the boxes of those that are `believed` (B, M) bool are merged.
    """

    members: Mapping[str, Outputs]
    rows: Mapping[str, Tensor]
    believed: Tensor
    size: tuple[int, int]
    judgement: Judgement | None = None


register_dataclass(EnsembleOutputs)


class BoxEnsemble(Detector):
    """Detectors of one modality each, trained side by side, which merge only the boxes that they find.

    All that they share in training is the clipping of the gradient's norm.

    How the scores become probabilities is kept in buffers, so a checkpoint has it: `slopes` and `offsets` (M,), in the
    order of `modalities`, and `prior` (), see `merge_boxes`. At first members are taken at their word, with the prior
    that the class head starts from; `training.score_calibration` fits all three on a validation split.
    """

    slopes: Tensor
    offsets: Tensor
    prior: Tensor

    def __init__(self, members: Mapping[str, Detector], sight: Sight, spec: Mapping[str, Any]) -> None:
        first = next(iter(members.values()))
        sensors = {modality: member.sensors[modality] for modality, member in members.items()}
        super().__init__(sensors, first.classes, first.levels, first.anchor_scale, sight, spec)
        self.members = nn.ModuleDict(members)
        self.register_buffer("slopes", torch.ones(len(members)))
        self.register_buffer("offsets", torch.zeros(len(members)))
        self.register_buffer("prior", torch.tensor(CLASS_PRIOR))

    def member(self, modality: str) -> Detector:
        """Returns the detector of one modality."""
        member = self.members[modality]
        assert isinstance(member, Detector)
        return member

    def run(
        self,
        images: Mapping[str, Tensor],
        size: tuple[int, int],
        presence: Presence,
        doubt: Doubting,
        witness: Witness | None = None,
    ) -> EnsembleOutputs:
        """Runs each modality's detector on the images that have it; the boxes of one that is dropped aren't merged."""
        rows = {m: presence.rows[m] for m in presence.there}
        members = {m: self._run(m, own.take(images[m]), size, doubt) for m, own in rows.items()}
        places = {m: own.places(torch.device("cpu")) for m, own in rows.items()}
        device = self.device
        there = torch.stack([presence.rows[m].on(device).expand(presence.batch) for m in self.modalities], 1)
        if doubt == "off" or not self.doubts:
            return EnsembleOutputs(members, places, there, size)
        judgement = self._judge(members, {m: own.places(device) for m, own in rows.items()}, there, doubt, witness)
        return EnsembleOutputs(members, places, there & ~judgement.dropped, size, judgement)

    def _run(self, modality: str, images: Tensor, size: tuple[int, int], doubt: Doubting) -> Outputs:
        """Runs a member on `images` (n, C, H, W), of which there may be none."""
        presence = Presence.whole((modality,), len(images))
        outputs: Outputs = self.member(modality).run({modality: images}, size, presence, doubt)
        return outputs

    def _judge(
        self,
        members: Mapping[str, Outputs],
        places: Mapping[str, Tensor],
        there: Tensor,
        doubt: Doubting,
        witness: Witness | None,
    ) -> Judgement:
        doubts = torch.full(there.shape, torch.nan, device=there.device)
        for modality, member in members.items():
            assert member.judgement is not None
            doubts[places[modality], self.modalities.index(modality)] = member.judgement.doubts[:, 0]
        doubts = doubts.masked_fill(~there, torch.nan)
        return Judgement.of(doubts, there, doubt, witness)

    def maps(self, images: Mapping[str, Tensor]) -> dict[str, Sequence[Tensor]]:
        """Returns what the members' backbones say of images; see `Detector.maps`."""
        return {m: self.member(m).maps({m: x})[m] for m, x in images.items()}

    @property
    def doubts(self) -> Mapping[str, Doubt]:
        """What judges each sensor, by modality; each member has its own."""
        return {m: own for m in self.modalities for own in self.member(m).doubts.values()}

    def begin_doubt(self) -> None:
        """Gives every member a fresh `Doubt`; see `Detector.begin_doubt`."""
        for modality in self.modalities:
            self.member(modality).begin_doubt()
        self.agreement = Agreement(self.modalities).to(self.prior.device)

    def loss(self, outputs: EnsembleOutputs, targets: Targets) -> dict[str, Tensor]:
        """Returns "class", "box" and "total", added over the members, each on its own images."""
        losses = []
        for modality, member in outputs.members.items():
            rows = outputs.rows[modality].tolist()
            own = Targets([targets.boxes[row] for row in rows], [targets.labels[row] for row in rows])
            losses.append(self.member(modality).loss(member, own))
        return {key: torch.stack([loss[key] for loss in losses]).sum() for key in losses[0]}

    def decode(
        self, outputs: EnsembleOutputs, contents: Tensor | None = None, selection: Selection = DEFAULT
    ) -> list[Detections]:
        """Finds the boxes of each member, and merges those of one object.

        Raises:
            UserError: Soft-NMS is asked for, which keeps the boxes that are to be merged.
        """
        _refuse_soft(selection)
        nothing = Detections.empty().to(self.prior.device)
        found = {m: [nothing] * len(outputs.believed) for m in self.modalities}
        every = replace(selection, threshold=0.0)
        believed = outputs.believed.cpu()
        for modality, member in outputs.members.items():
            rows = outputs.rows[modality]
            detections = self.member(modality).decode(member, None if contents is None else contents[rows], every)
            column = self.modalities.index(modality)
            for row, one in zip(rows.tolist(), detections, strict=True):
                if believed[row, column]:
                    found[modality][row] = one
                if outputs.judgement is not None and outputs.judgement.belief is not None:
                    own = found[modality][row]
                    weighed = self._weighed(own.scores, outputs.judgement.belief[row, column])
                    found[modality][row] = replace(own, scores=weighed)
        return self.merge(found, selection)

    def _weighed(self, scores: Tensor, belief: Tensor) -> Tensor:
        """Returns scores whose evidence, what their log-odds are above the prior, counts for `belief`."""
        return (self.prior + belief.to(self.prior) * (scores.logit(CLAMP) - self.prior)).sigmoid()

    def decode_padded(
        self, outputs: EnsembleOutputs, contents: Tensor | None = None, selection: Selection = DEFAULT
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Does what `decode` does in shapes that don't depend on what is found; every member has run on all images."""
        _refuse_soft(selection)
        every = replace(selection, threshold=0.0)
        found = []
        for modality, own in outputs.members.items():
            number = self.modalities.index(modality)
            boxes, scores, labels = self.member(modality).decode_padded(own, contents, every)
            believed = outputs.believed[:, number, None]
            if outputs.judgement is not None and outputs.judgement.belief is not None:
                scores = self._weighed(scores, outputs.judgement.belief[:, number, None])
            labels = torch.where(believed, labels, -1)
            scores = torch.where(labels >= 0, scores, 0.0)
            found.append((boxes, scores, labels, torch.full_like(labels, number)))
        boxes, scores, labels, member = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        boxes, scores, labels = _merged(boxes, scores, labels, member, selection, self.slopes, self.offsets, self.prior)
        kept = scores > max(selection.threshold, 0.0)
        lacking = selection.max_detections - scores.shape[1]
        return (
            F.pad(torch.where(kept[..., None], boxes, 0.0), (0, 0, 0, lacking)),
            F.pad(torch.where(kept, scores, 0.0), (0, lacking)),
            F.pad(torch.where(kept, labels, -1), (0, lacking), value=-1),
        )

    def merge(self, found: Mapping[str, Sequence[Detections]], selection: Selection = DEFAULT) -> list[Detections]:
        """Merges what each modality's detector found, an entry for each image, empty where it saw nothing."""
        images = list(zip(*(found[m] for m in self.modalities), strict=True))
        return merge_boxes(images, selection, self.slopes, self.offsets, self.prior)

    def fusion_shares(self) -> dict[str, dict[int, float]]:
        """Has none to return; see `Detector.fusion_shares`."""
        raise UserError("placement: boxes merges modalities without weights, so there are no shares; use first")


def merge_boxes(
    found: Sequence[Sequence[Detections]], selection: Selection, slopes: Tensor, offsets: Tensor, prior: Tensor
) -> list[Detections]:
    """Merges what M detectors found: for each image the detections of each, in one order for all images.

    The log-odds l of a score of detector m become `slopes[m]` * l + `offsets[m]` (Platt scaling; both (M,), slopes
    above 0), which are those of the probability that its box is an object. Boxes of one class that overlap the most
    probable of them by more than `selection.iou_threshold` are one object, to which each detector gives its best. Its
    box is their mean, weighted by probability. Detectors are taken as independent given the class, so the log-odds of
    the object are the sum of theirs, less the `prior` () for each detector but one: the log-odds that any box is an
    object, which is in the probability of each, but may count once (ProbEn, ECCV 2022, with one class against the rest
    as the sigmoid has it).
    """
    lists = [
        (
            torch.cat([one.boxes for one in image]),
            torch.cat([one.scores for one in image]),
            torch.cat([one.labels for one in image]),
            torch.cat([torch.full_like(one.labels, number) for number, one in enumerate(image)]),
        )
        for image in found
    ]
    boxes, scores, labels, member = (
        pad_sequence(list(values), batch_first=True, padding_value=padding)
        for values, padding in zip(zip(*lists, strict=True), (0.0, 0.0, -1, -1), strict=True)
    )
    if scores.shape[1] == 0:
        return [image[0] for image in found]
    boxes, fused, labels = _merged(boxes, scores, labels, member, selection, slopes, offsets, prior)
    kept = fused > selection.threshold
    columns = (x[kept].split(kept.sum(1).tolist()) for x in (boxes, fused, labels))
    return [Detections(*values) for values in zip(*columns, strict=True)]


def _merged(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    member: Tensor,
    selection: Selection,
    slopes: Tensor,
    offsets: Tensor,
    prior: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges `boxes` (B, N, 4), found by detector `member` (B, N) with `scores` and `labels` (B, N); see `merge_boxes`.

    What is no box has score 0 and label -1. Returns boxes, scores and labels of the `max_detections` best objects, or N
    if less, best first; what is no object has score -1.
    """
    exact = slopes[member] * scores.double().logit() + offsets[member]  # no two scores become one
    exact, order = _ranked(exact)
    scores, labels, member = (x.gather(1, order) for x in (scores, labels, member))
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    batch, count = scores.shape
    every = replace(selection, threshold=-math.inf, max_detections=count)
    heads = torch.zeros(batch, count, dtype=torch.bool, device=boxes.device)
    if torch.compiler.is_exporting() or boxes.is_cuda:
        places = every.settle(boxes.double(), exact > -math.inf, labels)
        heads = F.pad(heads, (0, 1)).scatter(1, places, True)[:, :count]
    else:
        heads.view(-1)[suppress(boxes, exact, labels, every)] = True

    number = torch.arange(count, device=boxes.device)
    overlap = box_maths.iou(boxes[:, :, None].double(), boxes[:, None].double())
    alike = (overlap > selection.iou_threshold) & (labels[:, :, None] == labels[:, None])
    owner = torch.where(alike & heads[..., None], number[:, None], count).amin(1)
    owner = torch.where(heads, number, owner)
    owned = owner[:, None] == number[:, None]
    logit = slopes[member] * scores.logit(CLAMP) + offsets[member]
    votes, givers = [], []
    for one in range(len(slopes)):
        logits = torch.where(owned & (member == one)[:, None], logit[:, None], -torch.inf)
        vote, place = logits.max(2)
        votes.append(vote)
        givers.append(place)
    vote, place = torch.stack(votes, 2), torch.stack(givers, 2)
    voted = vote.isfinite()
    fused = torch.where(voted, vote, 0.0).sum(2) - (voted.sum(2) - 1) * prior
    theirs = boxes.gather(1, place.flatten(1)[..., None].expand(-1, -1, 4)).view(*place.shape, 4)
    weight = torch.where(voted, vote.sigmoid(), 0.0)[..., None]
    boxes = (theirs * weight).sum(2) / weight.sum(2).clamp(min=1e-9)

    fused, order = _ranked(torch.where(heads, fused.sigmoid(), -1.0))
    fused, order = fused[:, : selection.max_detections], order[:, : selection.max_detections]
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), fused, labels.gather(1, order)


def _ranked(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns values (B, N) best first and their places, equal ones in order, which ONNX says of topk."""
    if torch.compiler.is_exporting():
        best, places = values.topk(values.shape[1], dim=1)
    else:
        best, places = values.sort(dim=1, descending=True, stable=True)
    return best, places


def _refuse_soft(selection: Selection) -> None:
    if selection.soft:
        raise UserError("soft: placement boxes merges overlapping boxes, so Soft-NMS doesn't apply; leave it out")
