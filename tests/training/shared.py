"""Trains recipes for an epoch, alone or as one of two processes, and keeps what came of it."""

import json
import os
import time
from multiprocessing import get_context

import torch
from safetensors.torch import load_file, save_file

from mmfuse.run import Run
from mmfuse.training.distributed import ALONE, World
from mmfuse.training.loop import prepare_training


def trained(recipe, folder, world=ALONE):
    """Returns the mean losses of an epoch, and the tensors of the detector after it."""
    training = prepare_training(recipe, Run(folder), world)
    with open(os.devnull, "w") as nowhere:
        from tqdm import tqdm

        losses = training._train_epoch(0, tqdm(file=nowhere))
    return losses, {name: x.contiguous() for name, x in training.detector.state_dict().items()}


def in_two_processes(recipes, folder):
    """Returns for each recipe what `trained` returns in the first process, and then in the second."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    spawn = get_context("spawn")
    processes = [spawn.Process(target=_take_part, args=(rank, recipes, folder, environment)) for rank in (0, 1)]
    for process in processes:
        process.start()
    end = time.monotonic() + 240
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        if any(process.exitcode for process in processes):
            break  # the other one would wait for it
        processes[0].join(0.1)
    for process in processes:
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    return [[_read(folder / f"{name}-{rank}") for rank in (0, 1)] for name in recipes]


def _take_part(rank, recipes, folder, environment):
    torch.set_num_threads(1)
    os.environ |= environment
    with World(rank, 2, torch.device("cpu")) as world:
        for name, recipe in recipes.items():
            losses, tensors = trained(recipe, folder / name, world)
            save_file(tensors, folder / f"{name}-{rank}.safetensors")
            (folder / f"{name}-{rank}.json").write_text(json.dumps(losses))


def _read(path):
    return json.loads(path.with_suffix(".json").read_text()), load_file(path.with_suffix(".safetensors"))
