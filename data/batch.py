"""`Batch`, one rank's part of a global batch, and how it is made from blocks.

B examples of a batch, N rows selected from a block, I dense features, F sparse features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dlrmctl.data.source import Block


@dataclass(frozen=True)
class Batch:
    """The input of a model: B examples.

    Attributes:
        dense_BI: float32, NaN where missing.
        ids: int64, all ids of feature 0 in the order of the examples, then all of feature 1, and so on.
        lengths_FB: int32, ids per feature and example; None means exactly one each.
        labels_B: float32, 0 or 1.
        keys: F names.
        num_valid: the first `num_valid` examples count; the others are repeats that keep shapes equal.
        weights_B: float32, at least 0; None if all examples count 1.
        groups_B: int64, -1 without a group; None without groups.
        id_weights: float32, the weight of each of `ids`; None if all are 1.
        ids_per_feature: the number of ids of each feature, where it is known and there are lengths.
    """

    dense_BI: Tensor
    ids: Tensor
    lengths_FB: Tensor | None
    labels_B: Tensor
    keys: tuple[str, ...]
    num_valid: int
    weights_B: Tensor | None = None
    groups_B: Tensor | None = None
    id_weights: Tensor | None = None
    ids_per_feature: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.labels_B.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Returns the same batch on `device`."""
        return replace(
            self,
            dense_BI=self.dense_BI.to(device, non_blocking=non_blocking),
            ids=self.ids.to(device, non_blocking=non_blocking),
            lengths_FB=None if self.lengths_FB is None else self.lengths_FB.to(device, non_blocking=non_blocking),
            labels_B=self.labels_B.to(device, non_blocking=non_blocking),
            weights_B=None if self.weights_B is None else self.weights_B.to(device, non_blocking=non_blocking),
            groups_B=None if self.groups_B is None else self.groups_B.to(device, non_blocking=non_blocking),
            id_weights=None if self.id_weights is None else self.id_weights.to(device, non_blocking=non_blocking),
        )

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of a batch on a GPU until this stream has used it."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                value.record_stream(stream)


@dataclass(frozen=True)
class PickedRows:
    """Rows to be copied into batches, in the narrow types of their block; batches widen them.

    Attributes:
        dense_NI: floating point, NaN where missing.
        ids_F: F integer arrays: N ids each, or with lengths the ids of each row at `offsets_FN`.
        labels_N: 0 or 1.
        lengths_FN: integers, or None for exactly one id each.
        offsets_FN: with lengths, the start of each row's ids in its feature's `ids_F`, and the end of the last row's;
            int64 [F, N + 1].
        weights_N, groups_N: those of a block.
        id_weights_F: those of a block, in the places of `ids_F`.
    """

    dense_NI: np.ndarray
    ids_F: Sequence[np.ndarray]
    labels_N: np.ndarray
    lengths_FN: np.ndarray | None = None
    offsets_FN: np.ndarray | None = None
    weights_N: np.ndarray | None = None
    groups_N: np.ndarray | None = None
    id_weights_F: Sequence[np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self.labels_N)


Piece = tuple[PickedRows, int, int]  # rows [start, stop) of those


def pick_rows(block: Block, rows_N: np.ndarray | slice) -> PickedRows:
    """Selects the rows `rows_N` of the block in that order; a row may be repeated.

    A slice must have a start, a stop and the step 1; it copies almost nothing and shares memory with the block.
    """
    picked = _slice_rows(block, rows_N) if isinstance(rows_N, slice) else _take_rows(block, rows_N)
    if block.weights_N is None and block.groups_N is None:
        return picked
    return replace(
        picked,
        weights_N=None if block.weights_N is None else block.weights_N[rows_N],
        groups_N=None if block.groups_N is None else block.groups_N[rows_N],
    )


def _take_rows(block: Block, rows_N: np.ndarray) -> PickedRows:
    # `take` needs about half the time of `[rows_N]`; dense features are transposed first, to be taken in whole rows.
    dense_NI = np.ascontiguousarray(block.dense_IN.T).take(rows_N, axis=0)
    labels_N = block.labels_N.take(rows_N)
    if block.lengths_FN is None:
        return PickedRows(dense_NI, [ids.take(rows_N) for ids in block.ids_F], labels_N)
    num_sparse, num_rows = len(block.ids_F), len(rows_N)
    lengths_FN = np.empty((num_sparse, num_rows), dtype=np.int32)
    offsets_FN = np.empty((num_sparse, num_rows + 1), dtype=np.int64)
    ids_F, id_weights_F = [], list[np.ndarray | None]()
    for f, ids in enumerate(block.ids_F):
        lengths_FN[f] = block.lengths_FN[f].take(rows_N)
        _running_sum(lengths_FN[f], out=offsets_FN[f])
        starts_N = _running_sum(block.lengths_FN[f]).take(rows_N)
        # Position k of the result is `k - offset of its row` places after the row's start in the block.
        positions = np.repeat(starts_N - offsets_FN[f, :-1], lengths_FN[f])
        positions += np.arange(len(positions))
        ids_F.append(ids.take(positions))
        weights = None if block.id_weights_F is None else block.id_weights_F[f]
        id_weights_F.append(None if weights is None else weights.take(positions))
    of_ids = None if block.id_weights_F is None else id_weights_F
    return PickedRows(dense_NI, ids_F, labels_N, lengths_FN, offsets_FN, id_weights_F=of_ids)


def _slice_rows(block: Block, rows: slice) -> PickedRows:
    dense_NI, labels_N = block.dense_IN[:, rows].T, block.labels_N[rows]
    if block.lengths_FN is None:
        return PickedRows(dense_NI, [ids[rows] for ids in block.ids_F], labels_N)
    offsets_FN = np.stack([_running_sum(lengths_N)[rows.start : rows.stop + 1] for lengths_N in block.lengths_FN])
    lengths_FN = block.lengths_FN[:, rows]
    return PickedRows(dense_NI, block.ids_F, labels_N, lengths_FN, offsets_FN, id_weights_F=block.id_weights_F)


def reorder(pieces: Sequence[Piece], order_N: np.ndarray | None) -> PickedRows:
    """Joins consecutive pieces, and takes their rows in an order; a row may be repeated.

    Args:
        pieces: rows, all with lengths or all without; at least one.
        order_N: places in the joined rows; None keeps all in their order.
    """
    whole = _as_block(pieces)
    return pick_rows(whole, slice(0, len(whole)) if order_N is None else order_N)


def _as_block(pieces: Sequence[Piece]) -> Block:
    def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)

    rows, starts, stops = zip(*pieces, strict=True)
    slices = [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]

    def of_rows(columns: Sequence[np.ndarray | None]) -> np.ndarray | None:
        there = [column[some] for column, some in zip(columns, slices, strict=True) if column is not None]
        return joined(there) if there else None

    lengths_FN = id_weights_F = None
    if rows[0].lengths_FN is not None:
        lengths_FN = np.concatenate([each.lengths_FN[:, some] for each, some in zip(rows, slices, strict=True)], axis=1)
    if rows[0].id_weights_F is not None:
        id_weights_F = [
            None if weights is None else joined([_id_weights_of(piece, f) for piece in pieces])
            for f, weights in enumerate(rows[0].id_weights_F)
        ]
    return Block(
        joined([each.dense_NI[some] for each, some in zip(rows, slices, strict=True)]).T,
        [joined([_ids_of(piece, f) for piece in pieces]) for f in range(len(rows[0].ids_F))],
        joined([each.labels_N[some] for each, some in zip(rows, slices, strict=True)]),
        lengths_FN,
        of_rows([each.weights_N for each in rows]),
        of_rows([each.groups_N for each in rows]),
        id_weights_F,
    )


def join_batch(pieces: Sequence[Piece], keys: tuple[str, ...], num_valid: int, *, pin_memory: bool = False) -> Batch:
    """Copies consecutive pieces into one batch.

    Args:
        pieces: rows, all with lengths or all without.
        keys: F names.
        num_valid: the number of rows that count.
        pin_memory: use page-locked memory, for asynchronous copies to a GPU; needs CUDA.
    """
    num_rows, num_dense = sum(stop - start for _, start, stop in pieces), pieces[0][0].dense_NI.shape[1]
    dense_BI = torch.empty((num_rows, num_dense), pin_memory=pin_memory)
    labels_B = torch.empty(num_rows, pin_memory=pin_memory)
    at = 0
    for rows, start, stop in pieces:
        end = at + stop - start
        dense_BI[at:end].copy_(torch.from_numpy(rows.dense_NI[start:stop]))  # NumPy widens float16 slowly
        labels_B.numpy()[at:end] = rows.labels_N[start:stop]
        at = end
    lengths_FB = None
    if pieces[0][0].lengths_FN is not None:
        lengths_FB = torch.empty((len(keys), num_rows), dtype=torch.int32, pin_memory=pin_memory)
        np.concatenate(
            [rows.lengths_FN[:, start:stop] for rows, start, stop in pieces if rows.lengths_FN is not None],
            axis=1,
            out=lengths_FB.numpy(),
        )
    parts = [_ids_of(piece, feature) for feature in range(len(keys)) for piece in pieces]
    per_feature = None
    if lengths_FB is not None:
        per_feature = tuple(sum(map(len, parts[at : at + len(pieces)])) for at in range(0, len(parts), len(pieces)))
    ids = torch.empty(sum(map(len, parts)), dtype=torch.int64, pin_memory=pin_memory)
    out, at = ids.numpy(), 0
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    id_weights = None
    if pieces[0][0].id_weights_F is not None:
        id_weights = torch.ones(len(ids), pin_memory=pin_memory)
        at = 0
        for feature in range(len(keys)):
            for rows, start, stop in pieces:
                assert rows.offsets_FN is not None
                assert rows.id_weights_F is not None
                first, last = rows.offsets_FN[feature, [start, stop]].tolist()
                weights = rows.id_weights_F[feature]
                if weights is not None:
                    id_weights.numpy()[at : at + last - first] = weights[first:last]
                at += last - first
    weights_B = groups_B = None
    if pieces[0][0].weights_N is not None:
        weights_B = torch.empty(num_rows, pin_memory=pin_memory)
        _join([rows.weights_N[a:b] for rows, a, b in pieces if rows.weights_N is not None], weights_B)
    if pieces[0][0].groups_N is not None:
        groups_B = torch.empty(num_rows, dtype=torch.int64, pin_memory=pin_memory)
        _join([rows.groups_N[a:b].view(np.int64) for rows, a, b in pieces if rows.groups_N is not None], groups_B)
    return Batch(dense_BI, ids, lengths_FB, labels_B, keys, num_valid, weights_B, groups_B, id_weights, per_feature)


def _join(parts: Sequence[np.ndarray], out: Tensor) -> None:
    np.concatenate(parts, out=out.numpy())


def _ids_of(piece: Piece, feature: int) -> np.ndarray:
    rows, start, stop = piece
    if rows.offsets_FN is not None:
        start, stop = rows.offsets_FN[feature, start], rows.offsets_FN[feature, stop]
    return rows.ids_F[feature][start:stop]


def _id_weights_of(piece: Piece, feature: int) -> np.ndarray:
    rows, start, stop = piece
    assert rows.offsets_FN is not None
    assert rows.id_weights_F is not None
    weights = rows.id_weights_F[feature]
    assert weights is not None
    return weights[rows.offsets_FN[feature, start] : rows.offsets_FN[feature, stop]]


def _running_sum(lengths_N: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Returns the sums of the lengths before each row, and of all: int64 [N + 1]."""
    sums = np.empty(len(lengths_N) + 1, dtype=np.int64) if out is None else out
    sums[0] = 0
    np.cumsum(lengths_N, out=sums[1:])
    return sums
