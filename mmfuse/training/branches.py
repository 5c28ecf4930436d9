"""The loss of a training step, with what keeps a fused detector strong on each of its sensors alone.

- Modality dropout takes sensors from images at random.
- Branch losses are those of each sensor alone, as if the others of the image were missing.
- Distillation draws the outputs of each sensor alone to those of all sensors, which aren't changed by it.

Backbones run once. Pyramid and heads run once too, on the images as they are followed by each again with one sensor
alone, so their batch norms see both kinds in training as in their running statistics. With M sensors in every image
that is M + 1 times the time and memory of pyramid and heads, and no more of the backbones'.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.model.detector import Detector, FusionDetector, Outputs
from mmfuse.model.losses import BOX_WEIGHT, DELTA, GAMMA, per_process
from mmfuse.model.presence import Presence
from mmfuse.recipes import TrainRecipe
from mmfuse.sample import Targets, to_device
from mmfuse.training.distributed import ALONE, World

_NONE: Mapping[str, Targets] = {}

CONFIDENT = 0.1
"""Probability of some class from which on an anchor's box is worth learning from: ten times what all start from."""


class StepLoss(nn.Module):
    """Forward and loss as one module, which is what DistributedDataParallel wraps.

    The mean over the processes of `world` is the loss of the whole batch, of which each has its share of the images.
    """

    def __init__(self, detector: Detector, recipe: TrainRecipe, world: World = ALONE) -> None:
        super().__init__()
        self.detector = detector
        self.recipe = recipe
        self.world = world

    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        targets: Targets,
        own: Mapping[str, Targets] = _NONE,
    ) -> dict[str, Tensor]:
        """Returns the scalars "class" and "box" of all sensors, "total", and "branch" and "distillation" if weighed.

        `images` are normalised, `present` are masks (B,) of each modality on the host. `own` are the targets of
        modalities whose images show the objects elsewhere; branch losses take them.
        """
        detector, recipe = self.detector, self.recipe
        shown = present
        if recipe.modality_dropout:
            shown = drop_modalities(present, recipe.modality_dropout, self.world.rank, self.world.size)
        self.world.draw_apart()
        weighed = recipe.branch_weight > 0 or recipe.distillation > 0
        if not weighed or not isinstance(detector, FusionDetector) or detector.stacked or len(detector.modalities) == 1:
            size, presence = detector.checked(images, shown)
            return detector.loss(detector.run(images, size, self._elsewhere(presence), "off"), targets)
        outputs, rows, seen_by = self._with_each_alone(detector, images, present, shown)
        count = len(targets.boxes)
        losses = detector.loss(_part(outputs, slice(count)), targets)
        alone = rows[count:].tolist()
        if recipe.branch_weight:
            theirs = [own.get(m, targets) for m in seen_by]
            objects = Targets(
                [t.boxes[row] for t, row in zip(theirs, alone, strict=True)],
                [t.labels[row] for t, row in zip(theirs, alone, strict=True)],
            )
            losses["branch"] = detector.loss(_part(outputs, slice(count, None)), objects)["total"]
            losses["total"] = losses["total"] + recipe.branch_weight * losses["branch"]
        if recipe.distillation:
            whole = torch.stack([shown[m] == present[m] for m in present]).all(0)
            pupils = whole[rows[count:]].nonzero()[:, 0] + count
            losses["distillation"] = distillation_loss(_part(outputs, pupils), _part(outputs, rows[pupils]))
            losses["total"] = losses["total"] + recipe.distillation * losses["distillation"]
        return losses

    def _with_each_alone(
        self,
        detector: FusionDetector,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        shown: Mapping[str, Tensor],
    ) -> tuple[Outputs, Tensor, list[str]]:
        """Returns outputs of the images as `shown`, then of each with one of its sensors alone.

        Also whose outputs they are: the image's place in the batch (n,), and for each of the second kind the modality.
        Images of one sensor have no second row: the first says it all.
        """
        size, presence = detector.checked(images, present)
        features = detector.features(images, self._elsewhere(presence))
        there = torch.stack([present[m] for m in detector.modalities])
        alone = [(mask & (there.sum(0) > 1)).nonzero()[:, 0] for mask in there]
        rows = torch.cat([torch.arange(there.shape[1]), *alone])
        owners = list(zip(detector.modalities, alone, strict=True))
        masks = {
            m: torch.cat([shown[m], *(torch.full((len(own),), m == owner) for owner, own in owners)])
            for m in detector.modalities
        }
        places = to_device(rows, next(iter(images.values())).device)
        repeated = {m: [x[places] for x in maps] for m, maps in features.items()}
        seen_by = [m for m, own in owners for _ in range(len(own))]
        return detector.merge(repeated, size, self._elsewhere(Presence.of(masks))), rows, seen_by

    def _elsewhere(self, presence: Presence) -> Presence:
        """Returns it with what other processes have."""
        return presence.elsewhere(self.world.any_of(presence.there, presence.rows)) if self.world.size > 1 else presence


def drop_modalities(
    present: Mapping[str, Tensor], probability: float, rank: int = 0, world_size: int = 1
) -> dict[str, Tensor]:
    """Returns the masks `present` (B,) without each entry by `probability`; the last modality of an image stays.

    Draws from torch's global generator on the CPU, for the images of all processes, of which `rank` has every
    `world_size`-th.
    """
    there = torch.stack(list(present.values()))
    drawn = torch.rand(len(there), there.shape[1] * world_size)[:, rank::world_size]
    draws = torch.where(there, drawn, -1.0)
    kept = (draws >= probability) | (draws == draws.amax(0))
    return dict(zip(present, kept & there, strict=True))


def distillation_loss(pupil: Outputs, teacher: Outputs) -> Tensor:
    """Returns how far the outputs of a pupil are from a teacher's, 0 where they agree; no gradient reaches the teacher.

    Classes: cross-entropy to the teacher's probabilities, each scaled by its distance from them to the power of 1.5
    (quality focal loss: arXiv 2006.04388, equation 5), over all anchors. Boxes: Huber loss of the codes, over anchors
    of which the teacher is `CONFIDENT`. Weights are those of the detection loss; the divisor is the sum of the
    teacher's probabilities, of all processes, for the number of positive anchors, and 1. So a teacher that knows
    nothing yet hardly counts: divided by confident anchors, of which there are none at first, the loss drowns all
    others.
    """
    wanted = teacher.class_logits.detach().float().sigmoid()
    logits = pupil.class_logits.float()
    distance = (wanted - logits.sigmoid()).abs().pow(GAMMA)
    classes = (distance * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()
    confident = wanted.amax(2) >= CONFIDENT
    codes = teacher.box_codes.detach().float()
    boxes = F.huber_loss(pupil.box_codes.float(), codes, reduction="none", delta=DELTA)
    normaliser = per_process(wanted.sum())
    return (classes + BOX_WEIGHT * torch.where(confident[..., None], boxes, 0).sum() / 4) / normaliser


def _part(outputs: Outputs, rows: slice | Tensor) -> Outputs:
    rows = to_device(rows, outputs.box_codes.device) if isinstance(rows, Tensor) else rows
    return Outputs(outputs.class_logits[rows], outputs.box_codes[rows], outputs.size)
