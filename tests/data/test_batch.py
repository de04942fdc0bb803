"""A batch moves and is pinned as a whole."""

import pytest
import torch

from dlrmctl.data.reader import Reader
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
