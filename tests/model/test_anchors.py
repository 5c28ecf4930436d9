import pytest
import torch

from mmfuse import scaling
from mmfuse.model.heads import PER_PLACE, anchors

CPU = torch.device("cpu")


def test_a_loop_gives_the_same():
    expected = []
    for level in (3, 4):
        stride = 2**level
        for row in range(32 // stride):
            for column in range(48 // stride):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                for octave in range(3):
                    for wide, high in ((1, 1), (1.4, 0.7), (0.7, 1.4)):
                        side = 4 * stride * 2 ** (octave / 3)
                        w, h = side * wide / 2, side * high / 2
                        expected.append((x - w, y - h, x + w, y + h))
    got = anchors(32, 48, (3, 4), 4.0, CPU)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize(("name", "count"), [("d0", 49104), ("d1", 76725), ("d3", 150381), ("d7", 441936)])
def test_published_counts(name, count):
    size = scaling.size(name)
    assert len(anchors(size.resolution, size.resolution, size.levels, size.anchor_scale, CPU)) == count


def test_the_published_count_with_a_sixth_level():
    size = scaling.size("d7x")
    assert size.levels == (3, 4, 5, 6, 7, 8)
    assert len(anchors(1536, 1536, size.levels, size.anchor_scale, CPU)) == 442260


def test_scale_grows_the_sides_about_the_same_centres():
    small, large = (anchors(64, 64, (3,), scale, CPU) for scale in (4.0, 5.0))
    torch.testing.assert_close(
        (large[:, 2:] - large[:, :2]) / (small[:, 2:] - small[:, :2]), torch.full((576, 2), 1.25)
    )
    torch.testing.assert_close(large[:, :2] + large[:, 2:], small[:, :2] + small[:, 2:])
    assert len(small) == 8 * 8 * PER_PLACE
