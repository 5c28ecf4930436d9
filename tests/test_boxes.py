import math

import pytest
import torch
from torchvision.ops import box_iou

from mmfuse.boxes import clip, decode, encode, iou


def random_boxes(n: int, seed: int) -> torch.Tensor:
    corners = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * 500
    sides = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1)) * 200 + 10
    return torch.cat((corners, corners + sides), dim=-1)


def test_encode_by_hand():
    anchor = torch.tensor([0.0, 0.0, 10.0, 20.0])
    box = torch.tensor([5.0, 10.0, 25.0, 20.0])  # centre (15, 15), 20 wide, 10 high; the anchor's centre is (5, 10)
    expected = torch.tensor([5 / 20, 10 / 10, math.log(10 / 20), math.log(20 / 10)])
    torch.testing.assert_close(encode(box, anchor), expected)


def test_decode_by_hand():
    anchor = torch.tensor([0.0, 0.0, 10.0, 20.0])
    codes = torch.tensor([0.5, -1.0, math.log(2.0), 0.0])  # down by half a height, left by a width, twice as high
    torch.testing.assert_close(decode(codes, anchor), torch.tensor([-10.0, 0.0, 0.0, 40.0]))


def test_zero_codes_are_the_anchors():
    anchors = random_boxes(50, 0)
    torch.testing.assert_close(decode(torch.zeros(50, 4), anchors), anchors)


@pytest.mark.parametrize("shape", [(60, 4), (3, 20, 4)])
def test_decode_inverts_encode(shape):
    boxes, anchors = random_boxes(60, 0).reshape(shape), random_boxes(60, 7).reshape(shape)
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, atol=1e-3, rtol=1e-4)


def test_anchors_are_shared_by_the_images_of_a_batch():
    boxes, anchors = random_boxes(60, 0).reshape(3, 20, 4), random_boxes(20, 7)
    together = encode(boxes, anchors)
    assert together.shape == (3, 20, 4)
    torch.testing.assert_close(together, torch.stack([encode(b, anchors) for b in boxes]))
    torch.testing.assert_close(decode(together, anchors), boxes, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_size_code_overflows(dtype):
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]], dtype=dtype)
    codes = torch.tensor([[0.0, 0.0, 1e4, 1e4], [0.0, 0.0, -1e4, -1e4]], dtype=dtype)
    boxes = decode(codes, anchor)
    assert boxes.dtype == dtype
    assert boxes.isfinite().all()
    torch.testing.assert_close(boxes[0], torch.tensor([-492.0, -492.0, 508.0, 508.0], dtype=dtype))
    torch.testing.assert_close(boxes[1], torch.full((4,), 8.0, dtype=dtype))


def test_a_box_without_area_has_finite_codes():
    assert encode(torch.tensor([5.0, 5.0, 5.0, 5.0]), torch.tensor([0.0, 0.0, 10.0, 10.0])).isfinite().all()


def test_no_boxes():
    empty = torch.zeros(0, 4)
    assert encode(empty, empty).shape == decode(empty, empty).shape == clip(empty, 10, 10).shape == (0, 4)


def test_decode_has_gradients():
    codes = torch.zeros(5, 4, requires_grad=True)
    decode(codes, random_boxes(5, 0)).square().sum().backward()
    assert codes.grad is not None
    assert (codes.grad != 0).all()


def test_clip_moves_corners_into_the_image():
    boxes = torch.tensor([[-5.0, -6.0, 300.0, 200.0], [10.0, 20.0, 30.0, 40.0], [500.0, 1.0, 600.0, 2.0]])
    expected = torch.tensor([[0.0, 0.0, 200.0, 100.0], [10.0, 20.0, 30.0, 40.0], [200.0, 1.0, 200.0, 2.0]])
    torch.testing.assert_close(clip(boxes, 100, 200.0), expected)


def test_clip_to_one_size_an_image():
    boxes = torch.tensor([-1.0, -1.0, 999.0, 999.0]).expand(2, 3, 4)
    heights, widths = torch.tensor([50, 70]), torch.tensor([60.0, 80.0])
    clipped = clip(boxes, heights[:, None, None], widths[:, None, None])
    expected = torch.tensor([[0.0, 0.0, 60.0, 50.0], [0.0, 0.0, 80.0, 70.0]])
    torch.testing.assert_close(clipped, expected[:, None].expand(2, 3, 4))


def test_overlap_is_torchvision_s():
    a, b = random_boxes(30, 4), random_boxes(20, 5)
    torch.testing.assert_close(iou(a[:, None], b), box_iou(a, b))
    torch.testing.assert_close(iou(a[:20], b), box_iou(a[:20], b).diagonal())
    assert iou(a[:1], torch.tensor([[1.0, 1, 1, 1]])).item() == 0
