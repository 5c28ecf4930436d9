import pytest
import torch
import torch.nn.functional as F

from mmfuse.model.heads import Packing

SIZES = [[(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)], [(16, 48), (8, 24), (4, 12)], [(48, 16), (24, 8)], [(3, 2)]]
CPU = torch.device("cpu")


def maps(sizes, channels=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_packed_comes_back_as_rows_level_by_level(sizes):
    packing, levels = Packing(sizes, CPU), maps(sizes)
    canvas = packing.pack(levels)
    assert canvas.shape[2:] == (packing.height, packing.width)
    rows = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in levels], 1)
    assert torch.equal(packing.rows(canvas), rows)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_convolution_of_the_canvas_is_one_of_every_level(sizes):
    packing, levels = Packing(sizes, CPU), maps(sizes)
    kernel = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    wanted = [F.conv2d(x, kernel, padding=1, groups=3).permute(0, 2, 3, 1).flatten(1, 2) for x in levels]
    found = packing.rows(F.conv2d(packing.pack(levels), kernel, padding=1, groups=3))
    torch.testing.assert_close(found, torch.cat(wanted, 1))


@pytest.mark.parametrize("sizes", SIZES)
def test_values_of_levels_spread_over_their_places_and_nowhere_else(sizes):
    packing = Packing(sizes, CPU)
    values = torch.arange(1.0, 1 + 2 * len(sizes)).view(1, len(sizes), 2)
    spread = packing.spread(values)
    assert spread.shape == (1, 2, packing.height, packing.width)
    wanted = packing.pack([values[0, i][None, :, None, None].expand(1, 2, *size) for i, size in enumerate(sizes)])
    assert torch.equal(spread, wanted)


def test_little_of_the_canvas_is_empty():
    packing = Packing([(64, 64), (32, 32), (16, 16), (8, 8), (4, 4)], CPU)
    assert packing.height * packing.width <= 1.15 * len(packing.places)


def test_gradients_pass():
    packing, levels = Packing(SIZES[0], CPU), [x.requires_grad_() for x in maps(SIZES[0])]
    packing.pack(levels).sum().backward()
    assert all(torch.equal(x.grad, torch.ones_like(x)) for x in levels)
