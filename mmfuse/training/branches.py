"""The loss of a training step, with what keeps a fused detector strong on each of its sensors alone.

- Modality dropout takes sensors from images at random.
- Branch losses are those of each sensor alone, as if the others of the image were missing.
- Distillation draws the outputs of each sensor alone to those of all sensors, which aren't changed by it.

Backbones run once. Pyramid and heads run once too, on the images as they are followed by each again with one sensor
alone, so their batch norms see both kinds in training as in their running statistics. With M sensors in every image
that is M + 1 times the time and memory of pyramid and heads, and no more of the backbones'.

With `train.compile` the network runs as torch.compile makes it where no sensor of a batch is missing, but for the first
such batch. Others run as without it, and so does all where several processes share their batch norms: nothing is
compiled anew because other images lack a sensor. The losses aren't compiled.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfuse.errors import UserError
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
        self.network: Run = compiled_network if recipe.compile and world.size == 1 else run_network
        self._whole: _Plan | None = None

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
        size, presence = detector.checked(images, shown)
        whole = self.world.size == 1 and all(rows.mask is True for rows in presence.rows.values())
        seen_before = whole and self._whole is not None and self._whole.presence.batch == presence.batch
        plan = self._whole if seen_before else self._plan(images, present, shown, presence)
        assert plan is not None
        if whole:
            self._whole = plan
        run = self.network if seen_before else run_network
        outputs = run(detector, images, size, plan.presence, plan.places, plan.repeated)
        if plan.rows is None:
            return detector.loss(outputs, targets)
        rows, count = plan.rows, presence.batch
        losses = detector.loss(_part(outputs, slice(count)), targets)
        alone = rows[count:].tolist()
        if recipe.branch_weight:
            theirs = [own.get(m, targets) for m in plan.seen_by]
            objects = Targets(
                [t.boxes[row] for t, row in zip(theirs, alone, strict=True)],
                [t.labels[row] for t, row in zip(theirs, alone, strict=True)],
            )
            losses["branch"] = detector.loss(_part(outputs, slice(count, None)), objects)["total"]
            losses["total"] = losses["total"] + recipe.branch_weight * losses["branch"]
        if recipe.distillation:
            unchanged = torch.stack([shown[m] == present[m] for m in present]).all(0)
            pupils = unchanged[rows[count:]].nonzero()[:, 0] + count
            losses["distillation"] = distillation_loss(_part(outputs, pupils), _part(outputs, rows[pupils]))
            losses["total"] = losses["total"] + recipe.distillation * losses["distillation"]
        return losses

    def _plan(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        shown: Mapping[str, Tensor],
        presence: Presence,
    ) -> "_Plan":
        """Returns what to run: the images as `shown`, of which `presence` is read, and each with one sensor alone.

        Images of one sensor have no second row: the first says it all.
        """
        detector, recipe = self.detector, self.recipe
        weighed = recipe.branch_weight > 0 or recipe.distillation > 0
        if not weighed or not isinstance(detector, FusionDetector) or detector.stacked or len(detector.modalities) == 1:
            return _Plan(self._elsewhere(presence))
        there = torch.stack([present[m] for m in detector.modalities])
        alone = [(mask & (there.sum(0) > 1)).nonzero()[:, 0] for mask in there]
        rows = torch.cat([torch.arange(there.shape[1]), *alone])
        owners = list(zip(detector.modalities, alone, strict=True))
        masks = {
            m: torch.cat([shown[m], *(torch.full((len(own),), m == owner) for owner, own in owners)])
            for m in detector.modalities
        }
        read = self._elsewhere(detector.checked(images, present)[1])
        places = to_device(rows, next(iter(images.values())).device)
        seen_by = [m for m, own in owners for _ in range(len(own))]
        return _Plan(read, places, self._elsewhere(Presence.of(masks)), rows, seen_by)

    def _elsewhere(self, presence: Presence) -> Presence:
        """Returns it with what other processes have."""
        return presence.elsewhere(self.world.any_of(presence.there, presence.rows)) if self.world.size > 1 else presence


@dataclass(frozen=True)
class _Plan:
    """What a network runs: backbones on `presence`; if `places` (n,) are given, the rest on these images of the batch,
    as `repeated` says which sensors each has. `rows` are the places on the host, `seen_by` the modality of each that
    comes after the batch itself.
    """

    presence: Presence
    places: Tensor | None = None
    repeated: Presence | None = None
    rows: Tensor | None = None
    seen_by: list[str] = field(default_factory=list)


def run_network(
    detector: Detector,
    images: Mapping[str, Tensor],
    size: tuple[int, int],
    presence: Presence,
    places: Tensor | None,
    repeated: Presence | None,
) -> Any:
    """Returns the outputs of a detector in training; see `_Plan`."""
    if places is None or repeated is None or not isinstance(detector, FusionDetector):
        return detector.run(images, size, presence, "off")
    features = detector.features(images, presence)
    return detector.merge({m: [x[places] for x in maps] for m, maps in features.items()}, size, repeated)


Run = Callable[..., Any]
"""`run_network`, or what was compiled of it."""


def compiled_network(*arguments: Any) -> Any:
    """Does what `run_network` does by kernels that are compiled when they are first needed, which takes minutes.

    Drop path draws as it does otherwise. Compiled code is kept by torch, for later processes too, in the folder
    TORCHINDUCTOR_CACHE_DIR, "torchinductor_USER" where temporary files lie if it isn't set.

    Raises:
        UserError: it can't be compiled here.
    """
    from torch._dynamo.exc import TorchDynamoException

    try:
        with warnings.catch_warnings(action="ignore"):  # what a compiler tells its makers
            return _compiled()(*arguments)
    except TorchDynamoException as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"train.compile: the network can't be compiled here ({reason}); use false") from None


@cache
def _compiled() -> Run:
    return torch.compile(run_network, dynamic=False, options={"fallback_random": True})


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
