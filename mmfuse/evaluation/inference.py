"""Runs a detector over the images of a split."""

from collections.abc import Collection, Iterable, Mapping

import torch
from tqdm import tqdm

from mmfuse.errors import UserError
from mmfuse.model.detector import Finder
from mmfuse.model.doubt import Doubting
from mmfuse.model.postprocess import DEFAULT, Selection
from mmfuse.sample import Batch, Detections


def collect(
    detector: Finder,
    batches: Iterable[Batch],
    *,
    without: Collection[str] = (),
    selection: Selection = DEFAULT,
    doubt: Doubting = "drop",
    stuck: Mapping[str, Collection[int]] | None = None,
    progress: str | None = None,
) -> dict[int, Detections]:
    """Returns the detections of every image, by its id, in original pixels, on the CPU.

    `without` names modalities to leave out; an image that has no other is left without detections. `selection` says how
    they are chosen, `doubt` is as for `detect`. `stuck` maps a modality to the ids of the images that show an old
    frame of it, whose bits say so. `progress` is the title of a progress bar, None for none.

    Raises:
        UserError: `without` leaves the detector nothing to read.
    """
    rest = [m for m in detector.modalities if m not in without]
    if not rest:
        raise UserError(f"without: {', '.join(without)} leaves none of {', '.join(detector.modalities)}; keep one")
    found: dict[int, Detections] = {}
    for batch in tqdm(batches, desc=progress, disable=progress is None, unit="batch", leave=False):
        seen = torch.stack([batch.present[m] for m in rest]).any(0)
        found.update({image_id: Detections.empty() for image_id in batch.image_ids})
        if not bool(seen.any()):
            continue
        results = detector.find(
            {m: batch.images[m] if bool(seen.all()) else batch.images[m].float()[seen] for m in rest},
            {m: batch.present[m][seen] for m in rest},
            batch.contents[seen],
            selection,
            doubt,
            {m: torch.tensor([i in ids for i in batch.image_ids])[seen] for m, ids in (stuck or {}).items()},
        )
        scales = batch.scale[seen].tolist()
        for row, detections, scale in zip(seen.nonzero()[:, 0].tolist(), results, scales, strict=True):
            found[batch.image_ids[row]] = detections.rescale(scale).to("cpu")
    return found
