"""Runs a detector over the images of a split."""

from collections.abc import Collection, Iterable

import torch
from tqdm import tqdm

from mmfuse.errors import UserError
from mmfuse.model.detector import Detector
from mmfuse.model.doubt import Doubting
from mmfuse.sample import Batch, Detections


def collect(
    detector: Detector,
    batches: Iterable[Batch],
    *,
    without: Collection[str] = (),
    soft: bool = False,
    doubt: Doubting = "drop",
    progress: str | None = None,
) -> dict[int, Detections]:
    """Returns the detections of every image, by its id, in original pixels, on the CPU.

    `without` names modalities to leave out; an image that has no other is left without detections. `soft` uses
    Soft-NMS, `doubt` is as for `detect`. `progress` is the title of a progress bar, None for none. Uses bf16 on CUDA.

    Raises:
        UserError: `without` leaves the detector nothing to read.
    """
    rest = [m for m in detector.modalities if m not in without]
    if not rest:
        raise UserError(f"without: {', '.join(without)} leaves none of {', '.join(detector.modalities)}; keep one")
    device = next(detector.parameters()).device
    found: dict[int, Detections] = {}
    for batch in tqdm(batches, desc=progress, disable=progress is None, unit="batch", leave=False):
        seen = torch.stack([batch.present[m] for m in rest]).any(0)
        found.update({image_id: Detections.empty() for image_id in batch.image_ids})
        if not bool(seen.any()):
            continue
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            results = detector.detect(
                {m: batch.images[m] if bool(seen.all()) else batch.images[m].float()[seen] for m in rest},
                {m: batch.present[m][seen] for m in rest},
                soft=soft,
                doubt=doubt,
            )
        for row, detections in zip(seen.nonzero()[:, 0].tolist(), results, strict=True):
            found[batch.image_ids[row]] = detections.rescale(batch.scale[row].to(device)).to("cpu")
    return found
