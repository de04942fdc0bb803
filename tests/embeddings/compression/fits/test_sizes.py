import pytest

from dlrmctl.embeddings.compression.fits.methods import Method, default_grid, least_bytes, most_bytes
from tests.embeddings.compression.tables import table_rows

NAMES = [
    *("fp32", "fp16", "int8", "int4", "int2", "pca8-fp32", "pca5-int4", "hash10-int8", "hash3-int4"),
    *("qr-mult8-int8", "qr-mult8q-fp16", "qr-add8-int4", "qr-concat8-fp16", "qr-concat8q-int8"),
    *("rq1x32", "rq3x32-int8", "rq2x300", "pq4x32", "pq2x32-int4", "nile-pro3-int4"),
]
HEADS = ["head2%+rq2x32", "head10%-fp32+int4", "head5%-int4+qr-mult8", "head5%+hash20", "head60%+int4"]


@pytest.mark.parametrize(("rows", "dim"), [(131, 16), (40, 12)])
def test_bytes_are_known_before_a_fit(rows: int, dim: int):
    table = table_rows(rows, dim)
    for name in [*NAMES, *(method.name for method in default_grid(dim) if not method.head_share)]:
        method = Method.parse(name)
        assert method.fit(table).num_bytes == least_bytes(method, rows, dim) == most_bytes(method, rows, dim), name


def test_a_head_leaves_only_its_bitmap_open():
    for table in (table_rows(711), table_rows(30)):
        for method in map(Method.parse, HEADS):
            found = method.fit(table).num_bytes
            assert found in (least_bytes(method, table.num_rows, 16), most_bytes(method, table.num_rows, 16))
