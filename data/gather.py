"""Picks the rows of a block in a given order, and batches out of the picked rows.

N rows picked, B rows of a batch, I dense features, F sparse features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batch import Batch
from data.source import Block


@dataclass(frozen=True)
class Rows:
    """Rows ready to be cut into batches.

    Attributes:
        dense_NI: float32.
        ids_FN: int64, one id each; None when there are lengths.
        labels_N: float32.
        lengths_FN: int32, or None.
        ids_F: with lengths, each feature's ids one after another, int64.
        offsets_FN: with lengths, where each row's ids start in its feature's `ids_F`; [F, N + 1].
    """

    dense_NI: Tensor
    ids_FN: Tensor | None
    labels_N: Tensor
    lengths_FN: Tensor | None = None
    ids_F: tuple[Tensor, ...] = ()
    offsets_FN: np.ndarray | None = None


def pick_rows(block: Block, rows_N: np.ndarray) -> Rows:
    """The rows `rows_N` of the block in that order; a row may be picked several times."""
    dense_NI = torch.from_numpy(block.dense_IN.T[rows_N].astype(np.float32, copy=False))
    labels_N = torch.from_numpy(block.labels_N[rows_N].astype(np.float32, copy=False))
    if block.lengths_FN is None:
        ids_FN = np.empty((len(block.ids_F), len(rows_N)), dtype=np.int64)
        for ids_N, column in zip(ids_FN, block.ids_F, strict=True):
            ids_N[:] = column[rows_N]
        return Rows(dense_NI, torch.from_numpy(ids_FN), labels_N)
    lengths_FN = block.lengths_FN[:, rows_N].astype(np.int32)
    offsets_FN = _starts(lengths_FN)
    block_offsets_FN = _starts(block.lengths_FN)
    ids_F = []
    for f, column in enumerate(block.ids_F):
        # Position k of the result is `k - offset of its row` places after the row's start in the block.
        shift_N = block_offsets_FN[f, rows_N] - offsets_FN[f, :-1]
        positions = np.repeat(shift_N, lengths_FN[f]) + np.arange(offsets_FN[f, -1])
        ids_F.append(torch.from_numpy(column[positions].astype(np.int64)))
    return Rows(dense_NI, None, labels_N, torch.from_numpy(lengths_FN), tuple(ids_F), offsets_FN)


def join_batch(pieces: Sequence[tuple[Rows, int, int]], keys: tuple[str, ...], num_valid: int) -> Batch:
    """One batch out of rows [start, stop) of each of the pieces, one after another."""
    dense_BI = _join([rows.dense_NI[start:stop] for rows, start, stop in pieces])
    labels_B = _join([rows.labels_N[start:stop] for rows, start, stop in pieces])
    lengths_FB = None
    if pieces[0][0].ids_FN is not None:
        ids = _join([rows.ids_FN[:, start:stop] for rows, start, stop in pieces if rows.ids_FN is not None], 1)
    else:
        lengths_FB = _join([r.lengths_FN[:, start:stop] for r, start, stop in pieces if r.lengths_FN is not None], 1)
        ids = torch.cat([_ids_of(piece, f) for f in range(len(keys)) for piece in pieces])
    return Batch(dense_BI, ids.reshape(-1), lengths_FB, labels_B, keys, num_valid)


def _starts(lengths_FN: np.ndarray) -> np.ndarray:
    """Running sums along the rows with a leading zero, int64 [F, N + 1]."""
    starts_FN = np.zeros((lengths_FN.shape[0], lengths_FN.shape[1] + 1), dtype=np.int64)
    np.cumsum(lengths_FN, axis=1, out=starts_FN[:, 1:])
    return starts_FN


def _ids_of(piece: tuple[Rows, int, int], feature: int) -> Tensor:
    rows, start, stop = piece
    assert rows.offsets_FN is not None
    return rows.ids_F[feature][rows.offsets_FN[feature, start] : rows.offsets_FN[feature, stop]]


def _join(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """One contiguous tensor that owns its memory: a batch neither keeps a whole block alive nor shares with another."""
    if len(tensors) == 1:
        return tensors[0].clone(memory_format=torch.contiguous_format)
    return torch.cat(list(tensors), dim)
