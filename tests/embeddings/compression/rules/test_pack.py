import pytest
import torch

from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.rules.pack import stored_like
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from tests.embeddings.compression.tables import table_rows

NAMES = [
    *("fp32", "fp16", "int8", "int4-search", "int2", "pca5-int4", "hash10-int8", "qr-mult8-int4", "qr-concat8-fp16"),
    *("rq2x32", "pq4x32-int4", "head5%+rq2x16", "head5%-int4+qr-add8"),
]
ROWS = 300


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_that_was_not_trained_is_stored_bit_by_bit_as_before(name: str):
    table = Method.parse(name).fit(table_rows(ROWS))
    again = stored_like(table.trainable(), table)
    before, after = table.parts(), again.parts()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert again.spec() == table.spec()


@pytest.mark.parametrize("name", NAMES)
def test_trained_numbers_are_stored_in_as_many_bytes_and_read_back_rounded(name: str):
    table = Method.parse(name).fit(table_rows(ROWS))
    twin = table.trainable()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 0.02
    again = stored_like(twin, table)
    assert again.num_bytes == table.num_bytes
    for now, wanted in zip(again.modules(), twin.modules(), strict=True):
        if isinstance(now, StoredRows):
            exact = wanted.expand()
            levels = 2 ** min(now.bits, 10) - 1  # of float16, 11 bits of a number below twice the range
            step = (exact.amax(1) - exact.amin(1)) / levels + 2e-3 * exact.abs().amax(1)
            assert bool(((now.expand() - exact).abs().amax(1) <= step).all())


def test_only_rows_that_moved_are_rounded_again():
    table = Method.parse("int4-search").fit(table_rows(ROWS))
    twin = table.trainable()
    with torch.no_grad():
        twin.values[7] *= 1.5
    moved = (stored_like(twin, table).values != table.values).any(1).nonzero().squeeze(1)
    assert moved.tolist() == [7]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_numbers_beyond_the_format_are_refused(value: float):
    table = Method.parse("int8").fit(table_rows(ROWS))
    twin = table.trainable()
    with torch.no_grad():
        twin.values[7, 3] = value
    with pytest.raises(ValueError, match="cannot be stored at 8 bits"):
        stored_like(twin, table)
