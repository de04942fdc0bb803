"""Slow float64 versions that are obviously right."""

import math

import torch
from torch import Tensor


def mlp(x: Tensor, weights: list[Tensor], biases: list[Tensor], *, last_relu: bool) -> Tensor:
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight.T + bias
        if i < len(weights) - 1 or last_relu:
            x = torch.where(x > 0, x, 0.0)
    return x


def dot_interaction(dense: Tensor, embeddings: Tensor) -> Tensor:
    """[B, D] and [B, F, D] -> the dense vector, then the products of vectors i > j, row by row."""
    rows = []
    for b in range(len(dense)):
        vectors = [dense[b], *embeddings[b]]
        products = [torch.sum(vectors[i] * vectors[j]) for i in range(len(vectors)) for j in range(i)]
        rows.append(torch.cat([dense[b], torch.stack(products)]))
    return torch.stack(rows)


def cross_layers(joined: Tensor, downs: list[Tensor], ups: list[Tensor], biases: list[Tensor]) -> Tensor:
    """[B, M]: x + x_0 * (W V x + b), example by example, for every layer."""
    rows = []
    for first in joined:
        x = first
        for down, up, bias in zip(downs, ups, biases, strict=True):
            x = x + first * (up @ (down @ x) + bias)
        rows.append(x)
    return torch.stack(rows)


def log_loss(probabilities: list[float], labels: list[float]) -> float:
    return -sum(math.log(p if y else 1 - p) for p, y in zip(probabilities, labels, strict=True)) / len(labels)


def auc(scores: list[float], labels: list[float]) -> float:
    """The share of (positive, negative) pairs in the right order; a tie counts half."""
    positives = [s for s, y in zip(scores, labels, strict=True) if y]
    negatives = [s for s, y in zip(scores, labels, strict=True) if not y]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))
