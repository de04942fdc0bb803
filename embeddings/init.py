"""Initial values of tables: the same for every number of ranks and every sharding plan.

A plain table of n rows starts at U(-1/sqrt(n), 1/sqrt(n)). Tables that are combined start such that the *combined*
vector has that variance, 1/(3n), and mean 0. Rows that are added to a table later start as its first rows did. Each
block of rows of a table has its own generator, so a rank can make any rows of any table without the others.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dlrmctl.embeddings.path import PATH_HALF_WIDTH, PATH_NOISE
from dlrmctl.embeddings.tables import FeatureTable

BLOCK_ROWS = 65_536
# Half the width of the factor near 1 in a product: it stays away from 0, and ids that share the other factor start with
# different products.
FACTOR_NOISE = 0.5


@dataclass(frozen=True)
class Uniform:
    """The uniform distribution on [low, high)."""

    low: float
    high: float

    @staticmethod
    def around_zero(half_width: float) -> "Uniform":
        return Uniform(-half_width, half_width)


def initial_distributions(feature: FeatureTable) -> tuple[Uniform, ...]:
    """Returns the distribution of the initial values of each table, in the order of `feature.tables`.

    "mult": the large table has the scale of a plain one, the others are near 1. With r ~ U(1 - a, 1 + a) a product has
    variance Var(q) E[r^2] = Var(q) (1 + a^2 / 3), once per factor, which a smaller bound of q compensates.
    "path": likewise, for what the networks add to the variance. "add": each of k tables has 1 / k of the variance.
    "concat", "features" and the head of a "head": as plain tables.
    """
    bound, parts = 1 / math.sqrt(feature.first_rows), len(feature.combined_keys)
    plain = Uniform.around_zero(bound)
    if feature.combination is None:
        return (plain,)
    combined = [plain] * parts
    if feature.combination == "add":
        combined = [Uniform.around_zero(bound / math.sqrt(parts))] * parts
    elif feature.combination == "mult":
        combined = [Uniform(1 - FACTOR_NOISE, 1 + FACTOR_NOISE)] * parts
        growth = (1 + FACTOR_NOISE**2 / 3) ** (parts - 1)
        combined[feature.value_part] = Uniform.around_zero(bound / math.sqrt(growth))
    elif feature.combination == "path":
        combined = [Uniform.around_zero(PATH_HALF_WIDTH)] * parts
        combined[feature.value_part] = Uniform.around_zero(bound / math.sqrt(1 + PATH_NOISE))
    return (*[plain] * (len(feature.lookups) - 1), *combined)


@torch.no_grad()
def fill_rows(rows_ND: Tensor, distribution: Uniform, *, table: str, seed: int, first_row: int = 0) -> None:
    """Writes the initial values of rows [first_row, first_row + N) of a table into `rows_ND`, on any device.

    Args:
        rows_ND: [N, D] of a floating dtype, all columns of the table.
        table: the table's name; it decides the values, with `seed` and the block.
    """
    num_rows, dim = rows_ND.shape
    row = first_row
    while row < first_row + num_rows:
        block = row // BLOCK_ROWS
        begin, end = row - block * BLOCK_ROWS, min(first_row + num_rows - block * BLOCK_ROWS, BLOCK_ROWS)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{table}:{block}:{seed}".encode()))
        # Always drawn from the block's first row on, for shards that begin inside a block.
        values = torch.empty(end, dim).uniform_(distribution.low, distribution.high, generator=generator)
        rows_ND[row - first_row : row - first_row + end - begin].copy_(values[begin:])
        row += end - begin


def table_distributions(features: Sequence[FeatureTable], dim: int) -> dict[str, Uniform]:
    """Returns the distribution of the initial values of every table, by the table's name."""
    return {
        table.name: distribution
        for feature in features
        for table, distribution in zip(feature.tables(dim), initial_distributions(feature), strict=True)
    }
