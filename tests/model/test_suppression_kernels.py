"""The kernel of hard suppression against `settled`: in Triton's interpreter here, on a GPU as it is."""

import os
import subprocess
import sys

import pytest
import torch

from mmfuse.model.postprocess import Selection, settled


def cases():
    """Yields boxes (B, N, 4), who is above, labels, how many are wanted, and the overlap: crowds, chains, and edges."""
    generator = torch.Generator().manual_seed(0)
    for count, most, overlap, spread in ((300, 20, 0.5, 100), (200, 500, 0.3, 30), (1, 5, 0.5, 10), (257, 9, 0.5, 5)):
        corner = torch.rand(2, count, 2, generator=generator) * spread
        boxes = torch.cat((corner, corner + torch.rand(2, count, 2, generator=generator) * 30), 2).double()
        labels = torch.randint(0, 3, (2, count), generator=generator)
        above = torch.arange(count) < torch.tensor([[count], [count * 2 // 3]])
        yield boxes, above, labels, most, overlap
    start = torch.arange(200) * 4.0  # each overlaps its neighbours alone, across all blocks
    chain = torch.stack((start, start * 0, start + 10, start * 0 + 10), 1).double()[None]
    for most in (3, 200):
        yield chain, torch.ones(1, 200, dtype=torch.bool), torch.zeros(1, 200, dtype=torch.int64), most, 0.4
    tied = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 5, 10], [0, 0, 10, 10]]).double()[None]
    for overlap in (0.5, 0.5 - 1e-12):  # two overlap the first by a half, which isn't more than a half
        yield tied, torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.int64), 4, overlap
    yield tied[:, :0], torch.ones(1, 0, dtype=torch.bool), torch.zeros(1, 0, dtype=torch.int64), 4, 0.5


def check(device):
    from mmfuse.model.suppression_kernels import kept_places

    for boxes, above, labels, most, overlap in cases():
        wanted = settled(boxes, above, labels, Selection(iou_threshold=overlap, max_detections=most))
        got = kept_places(boxes.to(device), above.to(device), labels.to(device), most, overlap)
        assert torch.equal(got.cpu(), wanted), (boxes.shape, most, overlap)
    compiled = torch.compile(kept_places, backend="eager", fullgraph=True)
    boxes, above, labels, most, overlap = next(cases())
    given = (boxes.to(device), above.to(device), labels.to(device), most, overlap)
    assert torch.equal(compiled(*given), kept_places(*given))
    torch.library.opcheck(kept_places, given)


def test_the_kernel_keeps_what_settling_keeps_in_triton_s_interpreter():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_the_kernel_keeps_what_settling_keeps_on_a_gpu():
    check("cuda")


if __name__ == "__main__":
    check("cpu")
