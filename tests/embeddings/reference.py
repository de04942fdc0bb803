"""What the embeddings should compute, as slow loops in float64, and batches to compare on."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from embeddings.tables import FeatureTable

Bags = dict[str, list[list[int]]]  # feature -> example -> ids

# Every way to embed a feature, one-hot and multi-hot, in an order that mixes them.
ONE_HOT = [
    FeatureTable("mult", 50, 1, "qr", 4, "mult"),
    FeatureTable("full", 100),
    FeatureTable("concat", 61, 1, "qr", 5, "concat"),
    FeatureTable("hash", 60, 1, "hash", 4),
    FeatureTable("add", 60, 1, "qr", 5, "add", "remainder"),
    FeatureTable("mult2", 37, 1, "qr", 3, "mult", "remainder"),
    FeatureTable("tiny", 3),
]
MULTI_HOT = [FeatureTable(f.name, f.rows, 4, f.kind, f.collisions, f.operation, f.large) for f in ONE_HOT]
MIXED = [*ONE_HOT[:4], *MULTI_HOT[4:]]


def make_bags(features: Sequence[FeatureTable], batch_size: int, seed: int) -> Bags:
    """Random ids with many repeats; multi-hot bags may be empty and may repeat an id."""
    rng = random.Random(seed)

    def bag(feature: FeatureTable) -> list[int]:
        count = 1 if feature.max_ids == 1 else rng.randint(0, feature.max_ids)
        # Squaring favours small ids, as sorting by frequency does.
        return [int(rng.random() ** 2 * feature.rows) for _ in range(count)]

    return {f.name: [bag(f) for _ in range(batch_size)] for f in features}


def to_kjt(bags: Bags) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        list(bags),
        torch.tensor([i for examples in bags.values() for ids in examples for i in ids], dtype=torch.int64),
        lengths=torch.tensor([len(ids) for examples in bags.values() for ids in examples], dtype=torch.int32),
    )


def part_of(bags: Bags, rank: int, world_size: int) -> Bags:
    def cut(examples: list[list[int]]) -> list[list[int]]:
        size = len(examples) // world_size
        return examples[rank * size : (rank + 1) * size]

    return {name: cut(examples) for name, examples in bags.items()}


def embed(features: Sequence[FeatureTable], tables: dict[str, Tensor], bags: Bags, dim: int) -> Tensor:
    """[B, F, D]: for each example and feature the sum over its ids of the combined rows."""
    examples = []
    for b in range(len(next(iter(bags.values())))):
        vectors = []
        for feature in features:
            total = torch.zeros(dim, dtype=torch.float64)
            for id_ in bags[feature.name][b]:
                total = total + _vector(feature, tables, id_)
            vectors.append(total)
        examples.append(torch.stack(vectors))
    return torch.stack(examples)


def _vector(feature: FeatureTable, tables: dict[str, Tensor], id_: int) -> Tensor:
    name = feature.name
    if feature.kind == "full":
        return tables[name][id_]
    big = math.ceil(feature.rows / feature.collisions)
    if feature.kind == "hash":
        return tables[name][id_ % big]
    divisor = feature.collisions if feature.large == "quotient" else big
    q, r = tables[f"{name}@q"][id_ // divisor], tables[f"{name}@r"][id_ % divisor]
    if feature.operation == "concat":
        return torch.cat([q, r])
    return q * r if feature.operation == "mult" else q + r


def rowwise_adagrad(weight: Tensor, state: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    """One step on float64 tensors in place; rows without a gradient do not move."""
    for row in range(weight.shape[0]):
        if grad[row].any():
            state[row] += (grad[row] ** 2).mean()
            weight[row] -= lr * grad[row] / (state[row].sqrt() + eps)
