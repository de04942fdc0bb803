"""A batch has the selected rows, and moves and is pinned as a whole."""

import numpy as np
import pytest
import torch

from dlrmctl.data.batch import PickedRows, join_batch, pick_rows
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Block
from tests.data.sources import Counting


def test_a_batch_moves_whole() -> None:
    batch = next(Reader(Counting(50, multi_hot=True), "train", batch_size=8).batches(0))
    moved = batch.to("meta")
    assert {moved.dense_BI.device.type, moved.ids.device.type, moved.labels_B.device.type} == {"meta"}
    assert moved.lengths_FB is not None
    assert moved.lengths_FB.device.type == "meta"
    assert (moved.keys, moved.num_valid, len(moved)) == (batch.keys, 8, 8)
    assert batch.dense_BI.dtype is torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("multi_hot", [False, True])
def test_a_batch_for_a_gpu_lies_in_page_locked_memory(multi_hot: bool) -> None:
    source = Counting(50, multi_hot=multi_hot)
    pinned = list(Reader(source, "train", batch_size=8, pin_memory=True).batches(0))
    for batch, plain in zip(pinned, Reader(source, "train", batch_size=8).batches(0), strict=True):
        moved = batch.to("cuda", non_blocking=True)
        torch.cuda.synchronize()
        for name in ("dense_BI", "ids", "lengths_FB", "labels_B"):
            tensor = getattr(batch, name)
            if tensor is None:
                continue
            assert tensor.is_pinned()
            assert torch.equal(getattr(moved, name).cpu(), getattr(plain, name))


KEYS = ("a", "b")


def make_block(num_rows: int, *, multi_hot: bool) -> Block:
    generator = np.random.default_rng(7)
    dense_IN = generator.normal(size=(3, num_rows)).astype(np.float16)
    lengths_FN = np.stack([np.ones(num_rows, int), generator.integers(0, 4, num_rows)]).astype(np.int32)
    counts = lengths_FN.sum(1) if multi_hot else [num_rows] * 2
    ids_F = [
        generator.integers(0, high, count).astype(t) for high, count, t in zip((256, 2**32), counts, "BI", strict=True)
    ]
    return Block(dense_IN, ids_F, generator.integers(0, 2, num_rows).astype(bool), lengths_FN if multi_hot else None)


def plain_rows(block: Block, rows: list[int]) -> list[tuple[list[float], bool, list[list[int]]]]:
    """The slow and obvious way: dense, label and lists of ids, row by row."""
    lists = []
    for f, ids in enumerate(block.ids_F):
        lengths = np.ones(len(block), int) if block.lengths_FN is None else block.lengths_FN[f]
        lists.append(np.split(ids, np.cumsum(lengths)[:-1]))
    return [(block.dense_IN[:, n].tolist(), bool(block.labels_N[n]), [x[n].tolist() for x in lists]) for n in rows]


def joined(pieces: list[tuple[PickedRows, int, int]]) -> list[tuple[list[float], bool, list[list[int]]]]:
    """The rows of the batch, row by row."""
    batch = join_batch(pieces, KEYS, 1)
    assert batch.ids.dtype is torch.int64
    assert batch.dense_BI.dtype is batch.labels_B.dtype is torch.float32
    assert batch.lengths_FB is None or batch.lengths_FB.dtype is torch.int32
    lengths = np.ones((2, len(batch)), int) if batch.lengths_FB is None else batch.lengths_FB.numpy()
    lists = np.split(batch.ids.numpy(), np.cumsum(lengths)[:-1])
    count = len(batch)
    return [
        (batch.dense_BI[n].tolist(), bool(batch.labels_B[n]), [lists[n].tolist(), lists[count + n].tolist()])
        for n in range(count)
    ]


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("rows", [[0], [3, 3, 0, 18, 7], list(range(19)), [18] * 4, list(range(5, 12))])
def test_picked_and_joined_rows_are_those_of_the_block(multi_hot: bool, rows: list[int]) -> None:
    block = make_block(19, multi_hot=multi_hot)
    picked = pick_rows(block, np.array(rows))
    expected = plain_rows(block, rows)
    assert joined([(picked, 0, len(rows))]) == expected
    cut = len(rows) // 2
    assert joined([(picked, cut, len(rows)), (picked, 0, cut)]) == expected[cut:] + expected[:cut]


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize(("start", "stop"), [(0, 19), (0, 1), (18, 19), (4, 11), (6, 6)])
def test_a_slice_is_the_rows_it_names(multi_hot: bool, start: int, stop: int) -> None:
    block = make_block(19, multi_hot=multi_hot)
    picked = pick_rows(block, slice(start, stop))
    assert len(picked) == stop - start
    assert joined([(picked, 0, stop - start)]) == plain_rows(block, list(range(start, stop)))
    other = pick_rows(block, np.array([2, 2, 9]))
    assert joined([(other, 1, 3), (picked, 0, stop - start)]) == plain_rows(block, [2, 9, *range(start, stop)])
