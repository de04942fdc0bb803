"""Rows outside the store get the ids and values that they would have had inside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.new_rows import cut_batches, read_new_rows
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.reader import Reader
from dlrmctl.data.store.store import Store
from tests.data.criteo_files import as_text, make_rows, prepare_criteo, write


@pytest.mark.parametrize("hash_rows", [None, 1000])
@pytest.mark.parametrize("labelled", [True, False])
def test_new_rows_are_encoded_like_stored_ones(tmp_path: Path, hash_rows: int | None, labelled: bool) -> None:
    rows = make_rows(90)
    prepare_criteo([write(tmp_path / "train.txt", rows)], tmp_path / "store", PrepareOptions(hash_rows=hash_rows))
    store = Store(tmp_path / "store")
    stored = list(Reader(store, "test", batch_size=7, shuffle=False).batches(0))
    new = write(tmp_path / "new.gz", [row if labelled else row[1:] for row in rows[-7:]])
    (piece,) = read_new_rows(CriteoInput([new], labelled=labelled), store.features.encoders(), store.schema)
    (batch,) = cut_batches(iter([piece.block]), store.schema.keys, 7)
    assert torch.equal(batch.ids, stored[0].ids)
    assert np.array_equal(batch.dense_BI, stored[0].dense_BI, equal_nan=True)
    assert torch.equal(batch.labels_B, stored[0].labels_B if labelled else torch.zeros(7))
    cut = list(cut_batches(iter([piece.block, piece.block]), store.schema.keys, 4))
    assert [(len(b), b.num_valid) for b in cut] == [(4, 4), (4, 4), (4, 4), (4, 2)]
    assert np.array_equal(cut[1].dense_BI[3:], batch.dense_BI[:1], equal_nan=True)


def test_bad_lines_among_new_rows_are_told_by_number(tmp_path: Path) -> None:
    rows = make_rows(30)
    prepare_criteo([write(tmp_path / "train.txt", rows)], tmp_path / "store")
    store = Store(tmp_path / "store")
    (tmp_path / "new").write_bytes(as_text([row[1:] for row in rows[:2]]) + b"x\n" + as_text([rows[3][1:]]))
    (piece,) = read_new_rows(
        CriteoInput([str(tmp_path / "n?w")], labelled=False), store.features.encoders(), store.schema
    )
    assert piece.lines_N.tolist() == [1, 2, 4]
    assert piece.source == "new"
    assert [(bad.line, bad.problem) for bad in piece.bad] == [(3, "1 field, expected 39")]
    other = replace(store.schema, dense=(*store.schema.dense[:-1], "age"), gaps=())
    with pytest.raises(DataError, match="the rows have the dense features int_1 to int_13, the model has int_1 to age"):
        read_new_rows(CriteoInput([tmp_path / "new"], labelled=False), store.features.encoders(), other)
    none = replace(store.schema, dense=(), gaps=())
    with pytest.raises(DataError, match="the rows have the dense features int_1 to int_13, the model has "):
        read_new_rows(CriteoInput([tmp_path / "new"], labelled=False), store.features.encoders(), none)
