"""Suppression by ONNX's own NonMaxSuppression, which runtimes have kernels for, in place of the traced one."""

from typing import Any

import torch
from torch import Tensor

from mmfuse.model.postprocess import Selection, settled


class StandardSelection(Selection):
    """A selection whose suppression is one operator in a traced graph, and NonMaxSuppression in an ONNX file.

    That computes overlaps in single precision, where the traced one has double.
    """

    def settle(self, boxes: Tensor, above: Tensor, labels: Tensor) -> Tensor:
        """Does what `postprocess.settled` does."""
        count = labels.shape[1]
        most = min(self.max_detections, count)
        if most == 0:
            return labels[:, :0]
        kept = _kept(boxes.float(), above, labels, most, self.iou_threshold)
        places = torch.where(kept, torch.arange(count, device=boxes.device), count)
        return places.topk(most, dim=1, largest=False).values


@torch.library.custom_op("mmfuse::kept", mutates_args=())
def _kept(boxes: Tensor, above: Tensor, labels: Tensor, most: int, iou_threshold: float) -> Tensor:
    """Returns which of `boxes` (B, N, 4), best first, suppression keeps of those `above` (B, N): (B, N) bool."""
    count = labels.shape[1]
    places = settled(boxes, above, labels, Selection(iou_threshold=iou_threshold, max_detections=most))
    return above.new_zeros(len(labels), count + 1).scatter(1, places, True)[:, :count]


@_kept.register_fake
def _(boxes: Tensor, above: Tensor, labels: Tensor, most: int, iou_threshold: float) -> Tensor:
    return torch.empty_like(above)


def translations() -> dict[Any, Any]:
    """Returns what `torch.onnx.export` is told of the operator."""
    from onnxscript import BOOL, FLOAT, INT64, opset20

    op: Any = opset20

    def kept(boxes: FLOAT, above: BOOL, labels: INT64, most: int, iou_threshold: float) -> BOOL:
        one = op.Constant(value_int=1)
        classes = op.Max(op.Add(op.ReduceMax(labels, keepdims=0), one), one)
        names = op.Unsqueeze(op.Range(op.Constant(value_int=0), classes, one), op.Constant(value_ints=[1]))
        count = op.Squeeze(op.Shape(labels, start=1, end=2))
        rank = op.Range(count, op.Constant(value_int=0), op.Constant(value_int=-1))
        own = op.And(
            op.Equal(op.Unsqueeze(labels, op.Constant(value_ints=[1])), names),
            op.Unsqueeze(above, op.Constant(value_ints=[1])),
        )
        scores = op.Where(own, op.Cast(rank, to=1), op.Constant(value_float=0.0))
        found = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[0.5]),
        )
        rows = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
        nothing = op.ConstantOfShape(op.Shape(labels))
        ones = op.ConstantOfShape(op.Shape(found, start=0, end=1))
        taken = op.ScatterND(nothing, rows, op.Add(ones, op.Constant(value_floats=[1.0])))
        return op.Cast(taken, to=9)

    return {torch.ops.mmfuse.kept.default: kept}
