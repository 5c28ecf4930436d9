"""The network as one graph of fixed shapes: from letterboxed images to detections."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmfuse.errors import UserError
from mmfuse.exporting.header import pixel_type
from mmfuse.model.detector import Detector
from mmfuse.model.doubt import Doubting
from mmfuse.model.postprocess import Selection

MOST = 4096
"""Images in a batch of any size, at most."""


class Finding(nn.Module):
    """A detector with what it is asked for, see `Detector.find_padded`."""

    def __init__(self, detector: Detector, selection: Selection, doubt: Doubting) -> None:
        super().__init__()
        self.detector = detector
        self.selection = selection
        self.doubt = doubt

    def forward(self, images: dict[str, Tensor], present: dict[str, Tensor], contents: Tensor) -> tuple[Tensor, ...]:
        """Returns what is found in `images` (B, C, H, W), and what is thought of their sensors."""
        return self.detector.find_padded(images, present, contents, self.selection, self.doubt)


def example(
    detector: Detector, size: tuple[int, int], batch: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Returns blank images of the types that a graph takes, which has float32 for uint16; all sensors are there."""
    images = {
        m: torch.zeros(batch, s.prepared_channels, *size, dtype=torch.uint8 if pixel_type(s) == "uint8" else None)
        for m, s in detector.sensors.items()
    }
    present = {m: torch.ones(batch, dtype=torch.bool) for m in images}
    return images, present, torch.tensor([size] * batch, dtype=torch.float32)


def traced(
    detector: Detector, size: tuple[int, int], batch: int, selection: Selection, doubt: Doubting
) -> ExportedProgram:
    """Traces a folded detector for images of `size` (H, W), `batch` of them or, where that is 0, any number.

    Raises:
        UserError: it can't be traced for any number.
    """
    from torch._dynamo.exc import UserError as TracingError

    given = example(detector, size, batch or 2)
    dynamic = None
    if not batch:
        axis = {0: Dim("batch", min=1, max=MOST)}
        dynamic = (dict.fromkeys(given[0], axis), dict.fromkeys(given[1], axis), axis)
    finding = Finding(detector, selection, doubt).eval()
    with torch.no_grad(), quiet():
        finding(*given)  # anchors and what heads keep are made now, not in the graph
        try:
            return torch.export.export(finding, given, dynamic_shapes=dynamic)
        except TracingError:
            if batch:
                raise
            raise UserError("batch: this detector can't be exported for any number of images; give a number") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' warnings of their own workings away from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
