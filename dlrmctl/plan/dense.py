"""Computes the memory and work of the dense network on every rank, from shapes alone.

The network is built on "meta", where tensors have shapes but no memory, for any number of ranks.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from dlrmctl.assembly.network import build_dense_network
from dlrmctl.assembly.optimizers import build_dense_optimizer, hidden_matrices
from dlrmctl.data.schema import Schema
from dlrmctl.optim.muon import polar_products, polar_scratch
from dlrmctl.optim.shampoo import DistributedShampoo
from dlrmctl.optim.shampoo.estimate import shampoo_shares
from dlrmctl.settings.config import Config

_FLOAT = 4
# What an optimizer allocates in a step for every weight, in weights. Torch's optimizers work on lists of tensors, so
# their intermediates exist for all weights at once.
_STATE = {"adagrad": 1, "adamw": 2, "sgd": 0, "signum": 1}
_SCRATCH = {"adagrad": 2, "adamw": 1, "sgd": 0, "signum": 1}
SHORT_RUN, RUN = 200, 1000  # steps over which the mean work of an optimizer is taken


@dataclass(frozen=True)
class DenseNeed:
    """The needs of the dense network, in bytes; tuples have one entry per rank.

    Attributes:
        num_weights: weights and biases of the MLPs.
        products: multiplications of one example in all linear layers.
        largest_layer: outputs and inputs of the linear layer with the most weights.
        state: state of the optimizer.
        scratch: further memory of its step: intermediates, padding, and the directions of all ranks.
        optimizer_products: multiplications of the optimizer per step, the mean of the first 1,000 steps.
        early_products: the mean of the first 200 steps.
        exchanged: bytes of directions that every rank receives in a step.
    """

    num_weights: int
    products: int
    largest_layer: tuple[int, ...]
    weights: int
    gradients: int
    state: tuple[int, ...]
    scratch: tuple[int, ...]
    optimizer_products: tuple[float, ...]
    early_products: tuple[float, ...]
    exchanged: int


def dense_need(config: Config, schema: Schema, world_size: int) -> DenseNeed:
    """Computes what the dense network of the settings needs on each of `world_size` ranks."""
    network = build_dense_network(config, schema, torch.device("meta"))
    num_weights = sum(p.numel() for p in network.parameters())
    layers = [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Linear)]
    optimizer = build_dense_optimizer(config.optim, nn.Linear(1, 1, device="meta"), None)  # only its settings are used
    weights = num_weights * _FLOAT
    if isinstance(optimizer, DistributedShampoo):
        settings = optimizer.param_groups[0]
        shares = shampoo_shares(network.parameters(), settings, world_size)
        longest = max(share.buffer for share in shares)
        exchanged = world_size * longest if world_size > 1 else 0
        state = tuple(share.state for share in shares)
        scratch = tuple(share.scratch + longest + exchanged for share in shares)
        products, early = (tuple(share.products(settings, steps) for share in shares) for steps in (RUN, SHORT_RUN))
    elif config.optim.dense_optimizer == "muon":
        shapes = [(p.shape[0], p.shape[1]) for p in hidden_matrices(network)]
        orthogonal = sum(map(math.prod, shapes))
        # AdamW's two averages for every other weight. Matrices take their steps one by one.
        state = (_FLOAT * (orthogonal + 2 * (num_weights - orthogonal)),) * world_size
        scratch = (_FLOAT * max(map(polar_scratch, shapes), default=0),) * world_size
        products = early = (float(sum(map(polar_products, shapes))),) * world_size
        exchanged = 0
    else:
        name, momentum = config.optim.dense_optimizer, config.optim.momentum > 0
        kept = 1 if name == "sgd" and momentum else _STATE[name]
        decayed = 1 if name == "sgd" and config.optim.weight_decay else 0
        state = (kept * weights,) * world_size
        scratch = ((_SCRATCH[name] + decayed) * weights,) * world_size
        products, early, exchanged = (0.0,) * world_size, (0.0,) * world_size, 0
    if config.optim.averaging != "none":  # the average, and the optimizer's iterate
        state = tuple(held + 2 * weights for held in state)
    return DenseNeed(
        num_weights=num_weights,
        products=sum(map(math.prod, layers)),
        largest_layer=max(layers, key=math.prod),
        weights=weights,
        gradients=weights,
        state=state,
        scratch=scratch,
        optimizer_products=products,
        early_products=early,
        exchanged=exchanged,
    )
