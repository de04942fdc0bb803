"""Reference embeddings, as slow loops in float64, and batches to compare on."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrmctl.embeddings.tables import FeatureTable

Bags = dict[str, list[list[int]]]  # feature -> example -> ids

# Every way to embed a feature, one-hot and multi-hot, in an order that mixes them.
ONE_HOT = [
    FeatureTable("mult", 50, 1, "qr", 4, "mult", qr_layout="quotient"),
    FeatureTable("full", 100),
    FeatureTable("concat", 61, 1, "qr", 5, "concat", qr_layout="quotient"),
    FeatureTable("hash", 60, 1, "hash", 4),
    FeatureTable("add", 60, 1, "qr", 5, "add", "remainder"),
    FeatureTable("mult2", 37, 1, "qr", 3, "mult", "remainder"),
    FeatureTable("tiny", 3),
]
MULTI_HOT = [replace(f, max_ids=4) for f in ONE_HOT]
MIXED = [*ONE_HOT[:4], *MULTI_HOT[4:]]

# The same of the ways to partition into more tables, to combine otherwise, and to keep a head.
_K = {"ways": 3, "collisions": 9}
MORE_ONE_HOT = [
    FeatureTable("kway-mult", 90, embedding="kway", operation="mult", **_K),
    FeatureTable("head", 50, embedding="head", collisions=4, head=10),
    FeatureTable("qr-path", 50, embedding="qr", collisions=4, operation="path", qr_layout="quotient"),
    FeatureTable("crt-add", 90, embedding="crt", operation="add", **_K),
    FeatureTable("head-mult", 70, embedding="head", collisions=5, head=12, tail="qr", qr_layout="quotient"),
    FeatureTable("full2", 40),
    FeatureTable("kway-features", 90, embedding="kway", operation="features", **_K),
    FeatureTable("double", 80, embedding="double-hash", collisions=4),
    FeatureTable(
        "head-concat", 70, embedding="head", collisions=5, operation="concat", head=12, tail="qr", qr_layout="quotient"
    ),
    FeatureTable("crt-mult", 90, embedding="crt", operation="mult", **_K),
    FeatureTable("kway-add2", 90, embedding="kway", operation="add", ways=4, collisions=40),
    FeatureTable("head-add", 70, 1, "head", 5, "add", "remainder", head=12, tail="qr"),
    FeatureTable("path2", 50, 1, "qr", 4, "path", "remainder"),
    FeatureTable("qr-features", 50, embedding="qr", collisions=7, operation="features", qr_layout="quotient"),
    FeatureTable("kway-concat", 90, embedding="kway", operation="concat", ways=2, collisions=9),
    FeatureTable("head-hash2", 60, embedding="head", collisions=9, head=1),
]
MORE_MULTI_HOT = [replace(f, max_ids=4) for f in MORE_ONE_HOT]
EVERYTHING = [*ONE_HOT[:3], *MORE_MULTI_HOT[:8], *MULTI_HOT[3:], *MORE_ONE_HOT[8:]]

# Tables of every kind that three features share, one of them with lists; other features are between them.
_SHARED = [ONE_HOT[k] for k in (0, 1, 3, 4)] + [MORE_ONE_HOT[k] for k in (0, 1, 2, 4, 6, 7, 8, 9)]
SHARED = [
    *(replace(f, table=f.name, most_ids=4) for f in _SHARED),
    FeatureTable("own", 30, 3),
    *(replace(f, name=f"{f.name}-of-4", max_ids=4, table=f.name, most_ids=4) for f in reversed(_SHARED)),
    *(replace(f, name=f"last-{f.name}", table=f.name, most_ids=4) for f in _SHARED),
]


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
    """[B, F, D]: for each example and vector the sum over its ids of the combined rows."""
    examples = []
    for b in range(len(next(iter(bags.values())))):
        vectors = []
        for feature in features:
            count = feature.ways if feature.embedding in ("kway", "crt") else 2
            totals = [torch.zeros(dim, dtype=torch.float64)] * (count if feature.operation == "features" else 1)
            for id_ in bags[feature.name][b]:
                totals = [t + v for t, v in zip(totals, _vectors(feature, tables, id_), strict=True)]
            vectors += totals
        examples.append(torch.stack(vectors))
    return torch.stack(examples)


def _vectors(feature: FeatureTable, tables: dict[str, Tensor], id_: int) -> list[Tensor]:
    name = feature.table or feature.name
    if feature.embedding == "full":
        return [tables[name][id_]]
    if feature.embedding == "hash":
        return [tables[name][id_ % math.ceil(feature.rows / feature.collisions)]]
    if feature.embedding == "head" and feature.tail == "hash":
        buckets = math.ceil((feature.rows - feature.head) / feature.collisions)
        return [tables[name][id_ if id_ < feature.head else feature.head + (id_ - feature.head) % buckets]]
    if feature.embedding == "double-hash":
        pair = [tables[f"{name}@{part}"] for part in (1, 2)]
        return [pair[0][splitmix64(id_, 0) % len(pair[0])] + pair[1][splitmix64(id_, 1) % len(pair[1])]]
    if feature.embedding in ("kway", "crt"):
        rows = []
        for part in range(1, feature.ways + 1):
            table = tables[f"{name}@{part}"]
            rows.append(table[id_ % len(table)])
            if feature.embedding == "kway":
                id_ //= len(table)
        return _combined(feature, rows)
    if feature.embedding == "head" and id_ < feature.head:
        return [tables[f"{name}@h"][id_]]
    id_ -= feature.head
    big = math.ceil((feature.rows - feature.head) / feature.collisions)
    divisor = feature.collisions if feature.qr_layout == "quotient" else big
    return _combined(feature, [tables[f"{name}@q"][id_ // divisor], tables[f"{name}@r"][id_ % divisor]])


def _combined(feature: FeatureTable, rows: list[Tensor]) -> list[Tensor]:
    if feature.operation == "features":
        return rows
    if feature.operation == "concat":
        return [torch.cat(rows)]
    if feature.operation == "path":
        x, network = rows if feature.qr_layout == "quotient" else rows[::-1]
        down, up = network.view(2, -1, len(x))
        hidden = [torch.clamp(v @ x / len(x) ** 0.5, min=0) for v in down]
        return [x + sum(h * u for h, u in zip(hidden, up, strict=True)) / len(up) ** 0.5]
    total = rows[0]
    for row in rows[1:]:
        total = total * row if feature.operation == "mult" else total + row
    return [total]


def splitmix64(state: int, seed: int) -> int:
    """Output number `seed` from a state, without its highest bit, in whole numbers of any size."""
    z = (state + (seed + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) % 2**63


def rowwise_adagrad(weight: Tensor, state: Tensor, grad: Tensor, lr: float, eps: float) -> None:
    """One step on float64 tensors in place; rows without a gradient do not move."""
    for row in range(weight.shape[0]):
        if grad[row].any():
            state[row] += (grad[row] ** 2).mean()
            weight[row] -= lr * grad[row] / (state[row].sqrt() + eps)
