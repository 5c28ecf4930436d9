"""The network of a step, compiled: the same losses and gradients, and nothing is compiled anew for missing sensors."""

import copy

import pytest
import torch
from test_branches import drawn, make
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounter

from mmfuse.errors import UserError
from mmfuse.model import checkpoint
from mmfuse.recipes import TrainRecipe
from mmfuse.training import branches
from mmfuse.training.branches import StepLoss, run_network
from mmfuse.training.distributed import World
from mmfuse.training.loop import train


@pytest.fixture
def graphs(monkeypatch):
    """Counts the graphs that are traced; what is traced runs as it is."""
    torch._dynamo.reset()
    counter = CompileCounter()
    run = torch.compile(run_network, backend=counter, dynamic=False)
    monkeypatch.setattr(branches, "_compiled", lambda: run)
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("modalities", "keys"),
    [
        ("ab", {"distillation": 1.0}),
        pytest.param("a", {}, marks=pytest.mark.long),
        pytest.param("ab", {"branch_losses": 0.0}, marks=pytest.mark.long),
    ],
)
def test_whole_batches_are_one_graph_and_others_run_as_they_are(graphs, modalities, keys):
    detector, (images, present, targets) = make(modalities, backbone="test_resnet").train(), drawn(modalities)
    other = copy.deepcopy(detector)
    compiled, plain = StepLoss(detector, TrainRecipe(compile=True, **keys)), StepLoss(other, TrainRecipe(**keys))
    lacking = [dict(present), *({**present, "b": torch.arange(3) != row} for row in range(3))]
    kinds = [present, *lacking, present, present] if modalities == "ab" else [present] * 4
    for number, masks in enumerate(kinds):
        found = []
        for step in (compiled, plain):
            torch.manual_seed(number)
            losses = step({m: x + 0.1 * number for m, x in images.items()}, masks, targets)
            gradients = torch.autograd.grad(losses["total"], list(step.detector.parameters()))
            found.append((losses, gradients))
        for key, value in found[1][0].items():
            torch.testing.assert_close(found[0][0][key], value, rtol=1e-5, atol=1e-6)
        for got, wanted in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        assert graphs.frame_count == min(number, 1)
    for (name, value), theirs in zip(detector.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(value, theirs, msg=name, rtol=1e-4, atol=1e-5)


def test_a_batch_of_another_size_is_planned_anew():
    detector = make(backbone="test_resnet").train()
    step = StepLoss(detector, TrainRecipe())
    for batch in (3, 3, 2):
        images, present, targets = drawn(batch=batch)
        torch.manual_seed(0)
        losses = step(images, present, targets)
        torch.manual_seed(0)
        torch.testing.assert_close(losses, StepLoss(detector, TrainRecipe())(images, present, targets))


def test_several_processes_compile_nothing():
    step = StepLoss(make("a"), TrainRecipe(compile=True), World(0, 2, torch.device("cpu")))
    assert step.network is run_network


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    def fail(*arguments):
        raise TorchDynamoException("InvalidCxxCompiler: no working C++ compiler found\nand more")

    monkeypatch.setattr(branches, "_compiled", lambda: fail)
    step, batch = StepLoss(make("a").train(), TrainRecipe(compile=True)), drawn("a")
    step(*batch)
    with pytest.raises(
        UserError, match=r"^train.compile: the network can't be compiled here \(.*and more\); use false"
    ):
        step(*batch)


@pytest.mark.long
def test_a_compiled_run_is_the_same_within_rounding_and_is_resumed(graphs, recipe_file, tmp_path, train_one_epoch):
    path = recipe_file("rgb", "thermal")
    plain = train(path, folder=tmp_path / "plain")
    path.write_text(path.read_text().replace("train: {", "train: {compile: true, "))
    train_one_epoch(path, tmp_path / "run")
    run = train(path, folder=tmp_path / "run", resume=True)
    assert graphs.frame_count
    for one, other in zip(plain.metrics, run.metrics, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert checkpoint.read(plain.last)[0].keys() == checkpoint.read(run.last)[0].keys()
    train(path, ["train.compile=false", "train.epochs=3"], folder=tmp_path / "run", resume=True)  # what may change


@pytest.mark.long
def test_what_inductor_makes_for_a_processor_is_the_same_within_rounding():
    torch._dynamo.reset()
    detector, batch = make("a", backbone="test_resnet", pyramid_depth=1, head_depth=1).train(), drawn("a")
    other = copy.deepcopy(detector)
    compiled, plain = StepLoss(detector, TrainRecipe(compile=True)), StepLoss(other, TrainRecipe())
    for _ in range(2):
        for step in (compiled, plain):
            step.zero_grad(set_to_none=True)
            step(*batch)["total"].backward()
        for mine, theirs in zip(detector.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_compiled_step_on_a_gpu_is_the_same_within_rounding():
    torch.set_float32_matmul_precision("highest")
    device = torch.device("cuda")
    detector, (images, present, targets) = make(backbone="test_resnet").train().to(device), drawn()
    images, targets = {m: x.to(device) for m, x in images.items()}, targets.to(device)
    other = copy.deepcopy(detector)
    compiled, plain = StepLoss(detector, TrainRecipe(compile=True)), StepLoss(other, TrainRecipe())
    for number in range(3):
        found = []
        for step in (compiled, plain):
            torch.manual_seed(number)
            with torch.autocast("cuda", torch.bfloat16):
                losses = step(images, present, targets)
            losses["total"].backward()
            found.append(losses["total"].detach())
        torch.testing.assert_close(*found, rtol=0.02, atol=0)
