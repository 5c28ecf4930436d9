"""The optimizer, its groups and the learning rate."""

import math
from typing import Any

import torch
from torch import nn

from mmfuse.model.backbones import Backbone
from mmfuse.recipes import TrainRecipe


def build_optimizer(model: nn.Module, recipe: TrainRecipe) -> torch.optim.Optimizer:
    """Returns SGD (momentum 0.9) or AdamW that decays the kernels of convolutions and linear layers alone.

    Norms, biases and fusion weights aren't decayed (EfficientDet, section 5.1; a decayed fusion weight loses its
    meaning as a share). The rate of a group is `rate_at` times its "scale". A step is one fused call for each group, in
    which the host reads nothing from a device.
    """
    kernels = {id(part.weight) for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    slow = {id(p) for part in model.modules() if isinstance(part, Backbone) for p in part.parameters()}
    slow = slow if recipe.backbone_rate != 1 else set()
    groups: list[dict[str, Any]] = []
    for scale, slower in ((1.0, False), (recipe.backbone_rate, True)):
        learnt = [p for p in model.parameters() if p.requires_grad and (id(p) in slow) == slower]
        decayed = [p for p in learnt if id(p) in kernels]
        free = [p for p in learnt if id(p) not in kernels]
        for params, decay in ((decayed, recipe.weight_decay), (free, 0.0)):
            if params:
                groups.append({"params": params, "weight_decay": decay, "scale": scale})
    rate = peak_rate(recipe)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, fused=True)
        for group in groups:  # torch's fused step fails where some have got no gradient yet, as of an absent sensor
            optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
        return optimizer
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def peak_rate(recipe: TrainRecipe) -> float:
    """Returns the largest learning rate, linear in the batch size: `lr` is for a batch of 64."""
    return recipe.lr * recipe.batch_size / 64


def rate_at(step: int, recipe: TrainRecipe, steps_per_epoch: int) -> float:
    """Returns the learning rate of a step, counted from 0: linear warm-up, then half a cosine to zero."""
    total = recipe.epochs * steps_per_epoch
    warmup = min(recipe.warmup_epochs * steps_per_epoch, total)
    if step < warmup:
        return peak_rate(recipe) * (step + 1) / (warmup + 1)
    return peak_rate(recipe) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))
