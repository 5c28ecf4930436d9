"""Fits from when on two sensors of a detector don't show the same scene: `fit_agreement`."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import EvalLoader
from mmfuse.evaluation.results import AgreementRow
from mmfuse.evaluation.robustness import of_another_scene
from mmfuse.model.agreement import strangers, usual_edges
from mmfuse.model.detector import Detector

MOST_STRANGE = 0.01
"""Share of the sound validation images of a condition that may be taken for two scenes."""

MOST_UNCLEAR = 0.1
"""The same, of images that may be taken for not clearly one scene."""

AS_STRANGE = 0.99
"""Share of the images of two scenes that agree less than what the threshold keeps away from."""


@torch.inference_mode()
def fit_agreement(
    detector: Detector,
    train: Sequence[Record],
    val: Sequence[Record],
    loaded: Callable[[Sequence[Record]], EvalLoader],
    seed: int,
) -> dict[str, AgreementRow]:
    """Fits the agreement of a detector's sensors, and returns what it then tells of each on validation.

    Images of two scenes are those with one sensor's frame of another scene: see `of_another_scene`, for which `seed`
    is. What is usual is the mean of sound training images. Two sensors show different scenes where they agree less than
    all but 1 % of the sound validation images of any condition, or, if nearly all images of two scenes agree still
    less, half way between. They clearly show one where they agree more than 10 % of the sound images of any condition.
    """
    agreement = detector.agreement
    assert agreement is not None
    names = agreement.modalities

    def encoded(records: Sequence[Record], title: str) -> Iterable[dict[str, Tensor]]:
        device = agreement.usual.device
        for batch in tqdm(loaded(records), desc=title, unit="batch", leave=False):
            yield detector.normalise({m: x.to(device) for m, x in batch.images.items()})

    def compared(records: Sequence[Record], title: str) -> Tensor:
        """Returns how the sensors agree (N, M, M), NaN for those that a fault struck."""
        values = torch.cat([agreement(images).cpu() for images in encoded(records, title)])
        struck = torch.tensor([[m in record.struck for m in names] for record in records])
        return values.masked_fill(struck[:, :, None] | struck[:, None], torch.nan)

    sound = torch.tensor([[m not in record.struck for m in names] for record in train]).float()
    weights = torch.where(sound.any(0), sound, 1.0).to(agreement.usual.device)
    fields = [torch.stack([usual_edges(x[m]) for m in names], 1) for x in encoded(train, "agreement: what is usual")]
    total = torch.einsum("nm,nmcij->mcij", weights, torch.cat(fields))
    agreement.usual.copy_(total / weights.sum(0)[:, None, None, None])

    together = compared(val, "agreement: sound")
    apart = dict[str, Tensor]()
    for m in names:
        swapped = of_another_scene(val, m, {record.image_id for record in val}, seed)
        kept = [one for one, before in zip(swapped, val, strict=True) if one.files[m] != before.files[m]]
        apart[m] = compared(kept, f"agreement: {m} swapped") if kept else together[:0]
    conditions = np.array([str(record.condition) for record in val])
    groups = {condition: torch.from_numpy(conditions == condition) for condition in sorted(set(conditions))}
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            same = [together[rows, i, j] for rows in groups.values()]
            least, clear = _least(same, torch.cat([apart[m][:, i, j] for m in (one, other)]))
            agreement.least[i, j] = agreement.least[j, i] = least
            agreement.clear[i, j] = agreement.clear[j, i] = clear

    def share(values: Tensor, number: int) -> float | None:
        known = ~values.isnan() & ~torch.eye(len(names), dtype=torch.bool)
        rows = known[:, number].any(1)
        alone = strangers(values >= agreement.least.cpu(), known)[rows, number]
        return float(alone.float().mean()) if len(alone) else None

    return {
        m: AgreementRow({c: share(together[rows], k) for c, rows in groups.items()}, share(apart[m], k))
        for k, m in enumerate(names)
    }


def _least(same: Sequence[Tensor], strange: Tensor) -> tuple[float, float]:
    """Returns both thresholds, given the agreement of one scene in each condition, and of two; NaN isn't known."""
    same, strange = [values[~values.isnan()] for values in same], strange[~strange.isnan()]
    least, clear = (
        min((float(values.sort().values[int(share * len(values))]) for values in same if len(values)), default=-np.inf)
        for share in (MOST_STRANGE, MOST_UNCLEAR)
    )
    far = float(strange.quantile(AS_STRANGE)) if len(strange) else np.inf
    return (least + min(least, far)) / 2, clear
