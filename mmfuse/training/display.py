"""Shows how a training goes: pictures in the run folder, renewed each time it is scored, and TensorBoard's log."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmfuse.data.annotations.records import Record
from mmfuse.data.samples import load_sample
from mmfuse.errors import UserError
from mmfuse.evaluation.curves import THRESHOLD
from mmfuse.recipes import TrainRecipe
from mmfuse.report.charts import training_progress
from mmfuse.report.grids import batch_grid, found_grid
from mmfuse.sample import Batch, Detections
from mmfuse.sensor import Sensor
from mmfuse.training.state import Row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = 4


class Display:
    """Writes what one can watch of a training into its folder; one process of a training has it.

    `first_batch.png` is there once, `training.png` and `validation.png` are renewed each time that the validation split
    is scored; the latter shows the same images with objects each time. With `log` "tensorboard" the figures of each
    epoch, and that picture of each that is scored, go into `tensorboard` there.
    """

    def __init__(
        self,
        folder: Path,
        sensors: Mapping[str, Sensor],
        classes: Sequence[str],
        val_records: Sequence[Record],
        log: str,
        epochs_done: int = 0,
    ) -> None:
        self._folder = folder
        self._found = folder / "validation.png"
        self._sensors = sensors
        self._classes = classes
        seen = [r for r in val_records if not r.ignore.all() and set(sensors) <= set(r.files)]
        chosen = [seen[i * len(seen) // SHOWN] for i in range(SHOWN)] if len(seen) > SHOWN else seen
        self._samples = [load_sample(record, sensors) for record in chosen]
        self._writer = _writer(folder / "tensorboard", epochs_done) if log == "tensorboard" else None

    def first_batch(self, batch: Batch) -> None:
        """Shows a batch as it is learnt, before modality dropout."""
        batch_grid(batch, self._sensors, self._classes, self._folder / "first_batch.png")

    def epoch(self, rows: Sequence[Row]) -> None:
        """Logs the last of the epochs so far, and shows all where it was scored."""
        row = rows[-1]
        if self._writer is not None:
            self._log(self._writer, row)
        if "val_ap" in row:
            training_progress(rows, self._folder / "training.png")

    def found(self, detections: Mapping[int, Detections]) -> None:
        """Shows what was found in some validation images, given all detections by image id."""
        if self._samples:
            found = [detections[sample.image_id] for sample in self._samples]
            found_grid(self._samples, found, self._sensors, self._classes, self._found, threshold=THRESHOLD)

    def _log(self, writer: "SummaryWriter", row: Row) -> None:
        from PIL import Image

        epoch = int(row["epoch"])
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key, value, epoch)
        if "val_ap" in row and self._samples:
            writer.add_image("validation", np.array(Image.open(self._found)), epoch, dataformats="HWC")
        writer.flush()


def check_log(train: TrainRecipe) -> None:
    """Refuses a log that can't be written here.

    Raises:
        UserError: TensorBoard isn't installed.
    """
    if train.log == "tensorboard" and find_spec("tensorboard") is None:
        raise UserError("train.log: tensorboard isn't installed; run pip install 'mmfuse[log]', or use none")


def _writer(folder: Path, epochs_done: int) -> "SummaryWriter":
    """Returns TensorBoard's writer; what it wrote of epochs that are trained again is left out."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=epochs_done + 1)
