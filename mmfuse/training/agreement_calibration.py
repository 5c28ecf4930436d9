"""Fits from when on two sensors of a detector don't show the same scene, and says how often that is right."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmfuse.data.annotations.records import Record
from mmfuse.data.loader import EvalLoader
from mmfuse.evaluation.results import AgreementRow
from mmfuse.evaluation.robustness import of_another_scene
from mmfuse.model.agreement import Agreement, strangers, usual_edges
from mmfuse.model.detector import Detector

MOST_STRANGE = 0.01
"""Share of the sound validation images of a condition that may be taken for two scenes."""

MOST_UNCLEAR = 0.1
"""The same, of images that may be taken for not clearly one scene."""

AS_STRANGE = 0.99
"""Share of the images of two scenes that agree less than what the threshold keeps away from."""


Loaded = Callable[[Sequence[Record]], EvalLoader]
"""What loads the images of records as a detector is shown them."""


@torch.inference_mode()
def fit_agreement(
    detector: Detector, train: Sequence[Record], val: Sequence[Record], loaded: Loaded, seed: int
) -> dict[str, AgreementRow]:
    """Fits the agreement of a detector's sensors, and returns what it then tells of each on validation.

    Images of two scenes are those with one sensor's frame of another scene: see `of_another_scene`, for which `seed`
    is. What is usual is the mean of sound training images. Two sensors show different scenes where they agree less than
    all but 1 % of the sound validation images of any condition, or, if nearly all images of two scenes agree still
    less, half way between. They clearly show one where they agree more than 10 % of the sound images of any condition.
    """
    agreement = _of(detector)
    sound = torch.tensor([[m not in record.struck for m in agreement.modalities] for record in train]).float()
    weights = torch.where(sound.any(0), sound, 1.0).to(agreement.usual.device)
    fields = [
        torch.stack([usual_edges(images[m]) for m in agreement.modalities], 1)
        for images in _encoded(detector, loaded(train), "agreement: what is usual")
    ]
    total = torch.einsum("nm,nmcij->mcij", weights, torch.cat(fields))
    agreement.usual.copy_(total / weights.sum(0)[:, None, None, None])

    together, apart = _measured(detector, val, loaded, seed)
    for i, one in enumerate(agreement.modalities):
        for j, other in enumerate(agreement.modalities[:i]):
            same = [together[rows, i, j] for rows in _conditions(val).values()]
            least, clear = _least(same, torch.cat([apart[m][:, i, j] for m in (one, other)]))
            agreement.least[i, j] = agreement.least[j, i] = least
            agreement.clear[i, j] = agreement.clear[j, i] = clear
    return _told(agreement, val, together, apart)


@torch.inference_mode()
def told_on(detector: Detector, records: Sequence[Record], loaded: Loaded, seed: int) -> dict[str, AgreementRow]:
    """Returns what the agreement of a detector's sensors, once fitted, tells of each in other images."""
    return _told(_of(detector), records, *_measured(detector, records, loaded, seed))


def _of(detector: Detector) -> Agreement:
    assert detector.agreement is not None
    return detector.agreement


def _encoded(detector: Detector, batches: EvalLoader, title: str) -> Iterator[dict[str, Tensor]]:
    device = _of(detector).usual.device
    for batch in tqdm(batches, desc=title, unit="batch", leave=False):
        yield detector.normalise({m: x.to(device) for m, x in batch.images.items()})


def _measured(
    detector: Detector, records: Sequence[Record], loaded: Loaded, seed: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns how sensors agree (N, M, M) in the images of records, and in those with a frame of another scene of each
    sensor, if there is one of their size; NaN for those that a fault struck.
    """
    agreement = _of(detector)
    names = agreement.modalities

    def compared(records: Sequence[Record], title: str) -> Tensor:
        values = torch.cat([agreement(images).cpu() for images in _encoded(detector, loaded(records), title)])
        struck = torch.tensor([[m in record.struck for m in names] for record in records])
        return values.masked_fill(struck[:, :, None] | struck[:, None], torch.nan)

    together, apart = compared(records, "agreement: sound"), dict[str, Tensor]()
    for m in names:
        swapped = of_another_scene(records, m, {record.image_id for record in records}, seed)
        kept = [one for one, before in zip(swapped, records, strict=True) if one.files[m] != before.files[m]]
        apart[m] = compared(kept, f"agreement: {m} swapped") if kept else together[:0]
    return together, apart


def _conditions(records: Sequence[Record]) -> dict[str, Tensor]:
    """Returns which records (N,) bool are of each condition."""
    of = np.array([str(record.condition) for record in records])
    return {condition: torch.from_numpy(of == condition) for condition in sorted(set(of))}


def _told(
    agreement: Agreement, records: Sequence[Record], together: Tensor, apart: Mapping[str, Tensor]
) -> dict[str, AgreementRow]:
    itself = torch.eye(len(agreement.modalities), dtype=torch.bool)

    def share(values: Tensor, number: int) -> float | None:
        known = ~values.isnan() & ~itself
        rows = known[:, number].any(1)
        alone = strangers(values >= agreement.least.cpu(), known)[rows, number]
        return float(alone.float().mean()) if len(alone) else None

    return {
        m: AgreementRow({c: share(together[rows], k) for c, rows in _conditions(records).items()}, share(apart[m], k))
        for k, m in enumerate(agreement.modalities)
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
