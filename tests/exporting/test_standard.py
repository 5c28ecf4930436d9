"""Suppression by NonMaxSuppression: it keeps what the traced one keeps, in PyTorch and in an ONNX file."""

import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from mmfuse.exporting.graph import quiet
from mmfuse.exporting.standard import StandardSelection, translations
from mmfuse.model.postprocess import settled


class Settling(nn.Module):
    def __init__(self, selection):
        super().__init__()
        self.selection = selection

    def forward(self, boxes, above, labels):
        return self.selection.settle(boxes, above, labels)


def candidates(count=90):
    """Three images: crowded ones of four classes, few of which are left out; one with two left; one with none."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, count, 2, generator=generator).double() * 40
    boxes = torch.cat((corners, corners + 20 + 10 * torch.rand(3, count, 2, generator=generator)), 2)
    labels = torch.randint(0, 4, (3, count), generator=generator)
    above = torch.rand(3, count, generator=generator) > 0.1
    above[1, 2:] = False
    above[2], labels[2] = False, -1
    return boxes, above, labels


@pytest.mark.parametrize("most", [12, 90])
def test_the_file_keeps_what_the_traced_steps_keep(most):
    selection = StandardSelection(iou_threshold=0.4, max_detections=most)
    given = candidates()
    expected = settled(*given, selection)
    assert (expected[0] < 90).sum() == {12: 12, 90: 36}[most]
    assert torch.equal(selection.settle(*given), expected)
    with quiet():
        batch = {0: Dim("batch", min=1, max=9)}
        program = torch.export.export(Settling(selection), given, dynamic_shapes=(batch,) * 3)
        made = torch.onnx.export(
            program, opset_version=20, custom_translation_table=translations(), optimize=False, verbose=False
        )
    model = made.model_proto
    assert [node.op_type for node in model.graph.node].count("NonMaxSuppression") == 1
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    for rows in (slice(0, 3), slice(2, 3)):
        (places,) = session.run(None, {name: x[rows].numpy() for name, x in zip(names, given, strict=True)})
        assert torch.equal(torch.from_numpy(places), expected[rows])
