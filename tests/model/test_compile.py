"""Forward, loss and detection as one graph each: no breaks, no second compilation, the same results.

The backend is "eager": what is traced runs as it is, so no compiler is needed. The number of objects is made the
same in all images of all batches: a list of lengths is a new graph for each.
"""

import pytest
import torch
from tiny import inputs, make
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from mmfuse.model.losses import detection_loss
from mmfuse.model.postprocess import Selection, decode, decode_padded, select_padded
from mmfuse.sample import Targets

pytestmark = pytest.mark.usefixtures("tiny_sizes")


@pytest.fixture(autouse=True)
def _afresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function):
    """Returns a function as one graph, and what counts how often it was compiled."""
    counter = CompileCounterWithBackend("eager")
    return torch.compile(function, backend=counter, fullgraph=True), counter


def objects(counts, most, seed):
    """Returns targets with that many objects in each image, filled up to `most` by objects of label -1."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for number in counts:
        corner = torch.rand(most, 2, generator=generator) * 80
        own = torch.cat((corner, corner + 8 + torch.rand(most, 2, generator=generator) * 40), 1)
        there = torch.arange(most) < number
        boxes.append(torch.where(there[:, None], own, 0))
        labels.append(torch.where(there, torch.randint(3, (most,), generator=generator), -1))
    return Targets(boxes, labels)


@pytest.mark.slow
def test_forward_and_loss_are_one_graph_for_all_batches():
    detector = make("ab", backbone="test_resnet").train()
    detector.anchors((128, 128))

    def losses(images, targets):
        return detector.loss(detector(images), targets)

    step, counter = compiled(losses)
    for seed, counts in enumerate([(3, 0), (5, 2)]):
        images, targets = {m: x + seed for m, x in inputs("ab").items()}, objects(counts, 6, seed)
        state = {name: value.clone() for name, value in detector.state_dict().items()}
        expected = losses(images, targets)
        gradients = torch.autograd.grad(expected["total"], list(detector.parameters()))
        detector.load_state_dict(state)
        found = step(images, targets)
        for got, wanted in zip(
            torch.autograd.grad(found["total"], list(detector.parameters())), gradients, strict=True
        ):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


def test_objects_of_label_minus_one_are_no_objects():
    """So targets can be filled up to one length."""
    detector = make("a")
    outputs, targets = detector(inputs("a")), objects((3, 0), 6, 0)
    cut = Targets(
        [b[t >= 0] for b, t in zip(targets.boxes, targets.labels, strict=True)], [t[t >= 0] for t in targets.labels]
    )
    found = (
        detection_loss(outputs.class_logits, outputs.box_codes, detector.anchors((128, 128)), t) for t in (targets, cut)
    )
    filled, plain = found
    for key, value in plain.items():
        torch.testing.assert_close(filled[key], value)


@pytest.mark.slow
def test_detection_is_one_graph_for_all_batches():
    detector = make("ab", backbone="test_resnet")
    selection = Selection(candidates=400, max_detections=8)
    grid = detector.anchors((128, 128))

    def detect(images):
        outputs = detector(images)
        return decode_padded(outputs.class_logits, outputs.box_codes, grid, outputs.size, selection)

    run, counter = compiled(detect)
    with torch.inference_mode():
        for shift in (0.0, 1.0):
            images = {m: x + shift for m, x in inputs("ab").items()}
            outputs = detector(images)
            expected = decode(outputs.class_logits, outputs.box_codes, grid, outputs.size, selection)
            for one, boxes, scores, labels in zip(expected, *run(images), strict=True):
                assert len(one)
                torch.testing.assert_close(boxes[: len(one)], one.boxes, rtol=1e-4, atol=1e-3)
                torch.testing.assert_close(scores[: len(one)], one.scores)
                assert torch.equal(labels[: len(one)], one.labels)
                assert (labels[len(one) :] == -1).all()
    assert counter.frame_count == 1


@pytest.mark.parametrize("soft", [False, True])
def test_the_rounds_of_suppression_are_traced_once(soft):
    """So compilation takes no longer for many detections than for few."""
    detector = make("a")
    grid = detector.anchors((128, 128))
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, len(grid), n, generator=generator) for n in (3, 4)]
    given = (*outputs, grid, (128, 128), Selection(candidates=90, max_detections=12, soft=soft))
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    run = torch.compile(decode_padded, backend=keep, fullgraph=True)
    for got, wanted in zip(run(*given), decode_padded(*given), strict=True):
        torch.testing.assert_close(got, wanted)
    (graph,) = graphs
    calls = [node for node in graph.graph.nodes if "invoke_subgraph" in str(node.target)]
    loops = [node for node in graph.graph.nodes if "while_loop" in str(node.target)]
    assert (len(calls), len(loops)) == ((12, 0) if soft else (0, 1))
    assert len({node.args[0].target for node in calls}) == soft


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_hard_suppression_exports_to_one_loop(device):
    """On every device, whether it can wait or not: a graph of a size that doesn't depend on what may be found."""

    class Chosen(torch.nn.Module):
        def forward(self, boxes, scores, labels):
            return select_padded(boxes, scores, labels, Selection())

    with FakeTensorMode(), torch.device(device):
        given = torch.zeros(2, 1000, 4), torch.zeros(2, 1000), torch.zeros(2, 1000, dtype=torch.int64)
    graph = torch.export.export(Chosen(), given).graph_module
    assert sum(node.op == "call_function" and "while_loop" in str(node.target) for node in graph.graph.nodes) == 1
    assert sum(len(part.graph.nodes) for part in graph.modules() if hasattr(part, "graph")) < 250
