"""Late fusion: a detector for each modality, whose boxes are merged by the probabilities that they give (ProbEn)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmfuse import boxes as box_maths
from mmfuse.errors import UserError
from mmfuse.model.detector import CLASS_PRIOR, Detector, Outputs
from mmfuse.model.postprocess import DEFAULT, Selection, suppress
from mmfuse.sample import Detections, Targets


@dataclass(frozen=True)
class EnsembleOutputs:
    """What each modality's detector says of the images that have it: `members`, and these images, `rows` (n,) int64."""

    members: Mapping[str, Outputs]
    rows: Mapping[str, Tensor]
    batch: int
    size: tuple[int, int]


class BoxEnsemble(Detector):
    """Detectors of one modality each, trained side by side, which merge only the boxes that they find.

    All that they share in training is the clipping of the gradient's norm.
    """

    def __init__(self, members: Mapping[str, Detector], spec: Mapping[str, Any]) -> None:
        first = next(iter(members.values()))
        sensors = {modality: member.sensors[modality] for modality, member in members.items()}
        super().__init__(first.size, sensors, first.classes, spec)
        self.members = nn.ModuleDict(members)

    def _member(self, modality: str) -> Detector:
        member = self.members[modality]
        assert isinstance(member, Detector)
        return member

    def forward(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> EnsembleOutputs:
        """Runs each modality's detector on the images that have it; see `Detector.forward`."""
        size, present = self.checked(images, present)
        batch = len(next(iter(images.values())))
        members, rows = {}, {}
        for modality, x in images.items():
            here = torch.arange(batch) if present is None else present[modality].nonzero()[:, 0]
            if len(here):
                rows[modality] = here.to(x.device)
                alone = x if len(here) == batch else x[rows[modality]]
                members[modality] = self._member(modality)({modality: alone})
        return EnsembleOutputs(members, rows, batch, size)

    def loss(self, outputs: EnsembleOutputs, targets: Targets) -> dict[str, Tensor]:
        """Returns "class", "box" and "total", added over the members, each on its own images."""
        losses = []
        for modality, member in outputs.members.items():
            rows = outputs.rows[modality].tolist()
            own = Targets([targets.boxes[row] for row in rows], [targets.labels[row] for row in rows])
            losses.append(self._member(modality).loss(member, own))
        return {key: torch.stack([loss[key] for loss in losses]).sum() for key in losses[0]}

    def decode(
        self, outputs: EnsembleOutputs, size: tuple[int, int] | None = None, selection: Selection = DEFAULT
    ) -> list[Detections]:
        """Finds the boxes of each member, and merges those of one object.

        Raises:
            UserError: Soft-NMS is asked for, which keeps the boxes that are to be merged.
        """
        if selection.soft:
            raise UserError("soft: placement boxes merges overlapping boxes, so Soft-NMS doesn't apply; leave it out")
        found: list[list[Detections]] = [[] for _ in range(outputs.batch)]
        every = replace(selection, score_threshold=0.0)
        for modality, member in outputs.members.items():
            detections = self._member(modality).decode(member, size or outputs.size, every)
            for row, one in zip(outputs.rows[modality].tolist(), detections, strict=True):
                found[row].append(one)
        return merge_boxes(found, selection)

    def fusion_shares(self) -> dict[str, dict[int, float]]:
        """Has none to return; see `Detector.fusion_shares`."""
        raise UserError("placement: boxes merges modalities without weights, so there are no shares; use first")


def merge_boxes(found: Sequence[Sequence[Detections]], selection: Selection) -> list[Detections]:
    """Merges what several detectors found: for each image a list with the detections of each.

    Boxes of one class that overlap the best of them by more than `selection.iou_threshold` are one object, to which
    each detector gives its best. Detectors are taken as independent given the class: the log-odds of the object are the
    sum of theirs, less the prior's for each detector but one; its box is their mean, weighted by score (ProbEn, ECCV
    2022, with one class against the rest as the sigmoid has it). The prior is our choice: the one that the class head
    starts from.
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
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    labels, member = labels.gather(1, order), member.gather(1, order)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    batch, count = scores.shape
    if count == 0:
        return [image[0] for image in found]
    heads = torch.zeros(batch * count, dtype=torch.bool, device=boxes.device)
    heads[suppress(boxes, scores, labels, replace(selection, score_threshold=0.0, max_detections=count))] = True
    heads = heads.view(batch, count)

    number = torch.arange(count, device=boxes.device)
    overlap = box_maths.iou(boxes[:, :, None].double(), boxes[:, None].double())
    alike = (overlap > selection.iou_threshold) & (labels[:, :, None] == labels[:, None])
    owner = torch.where(alike & heads[..., None], number[:, None], count).amin(1)
    owner = torch.where(heads, number, owner)
    owned = owner[:, None] == number[:, None]
    votes, places = [], []
    for one in range(max(len(image) for image in found)):
        logits = torch.where(owned & (member == one)[:, None], scores.logit(1e-6)[:, None], -torch.inf)
        vote, place = logits.max(2)
        votes.append(vote)
        places.append(place)
    vote, place = torch.stack(votes, 2), torch.stack(places, 2)
    voted = vote.isfinite()
    fused = torch.where(voted, vote, 0.0).sum(2) - (voted.sum(2) - 1) * CLASS_PRIOR
    theirs = boxes.gather(1, place.flatten(1)[..., None].expand(-1, -1, 4)).view(*place.shape, 4)
    weight = torch.where(voted, vote.sigmoid(), 0.0)[..., None]
    boxes = (theirs * weight).sum(2) / weight.sum(2).clamp(min=1e-9)

    fused, order = torch.where(heads, fused.sigmoid(), -1.0).sort(dim=1, descending=True, stable=True)
    fused, order = fused[:, : selection.max_detections], order[:, : selection.max_detections]
    kept = fused > selection.score_threshold
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    columns = (x[kept].split(kept.sum(1).tolist()) for x in (boxes, fused, labels.gather(1, order)))
    return [Detections(*values) for values in zip(*columns, strict=True)]
