"""How many bytes a method's table takes, known before anything is fitted."""

from embeddings.compression.head import bitmap_bytes
from embeddings.compression.isometry_report import OBJECTIVES
from embeddings.compression.methods import Method
from embeddings.compression.quantize import row_bytes
from embeddings.compression.shared import code_dtype
from embeddings.partitions import QuotientRemainder, ceil_div


def least_bytes(method: Method, rows: int, dim: int) -> int:
    """Bytes of all parts of a table of `rows` rows and `dim` columns.

    Only a head leaves something open: whether its ids need a bitmap. They are counted without.
    """
    heads = round(method.head_share * rows)
    if heads == 0 or heads >= rows:
        return _bytes(method, rows, dim)
    return heads * row_bytes(dim, method.head_bits) + _bytes(method, rows - heads, dim)


def most_bytes(method: Method, rows: int, dim: int) -> int:
    """The same with a bitmap for the ids of a head."""
    heads = round(method.head_share * rows)
    return least_bytes(method, rows, dim) + (bitmap_bytes(rows) if 0 < heads < rows else 0)


def _bytes(method: Method, rows: int, dim: int) -> int:
    if method.kind == "rows":
        return rows * row_bytes(dim, method.bits)
    if method.kind == "pca":
        return rows * row_bytes(method.rank, method.bits) + 4 * (method.rank + 1) * dim
    if method.kind in OBJECTIVES:
        return rows * row_bytes(method.rank, method.bits) + 4 * (2 * method.rank + 1) * dim
    if method.kind == "hash":
        return ceil_div(rows, method.collisions) * row_bytes(dim, method.bits)
    if method.kind == "qr":
        heights = QuotientRemainder.of(rows, method.collisions, large=method.large).table_rows
        widths = (dim // 2, dim - dim // 2) if method.operation == "concat" else (dim, dim)
        return sum(height * row_bytes(width, method.bits) for height, width in zip(heights, widths, strict=True))
    size = min(method.size, rows)
    width = dim // method.num_codes if method.kind == "pq" else dim
    codes = rows * method.num_codes * code_dtype(size).itemsize
    return codes + method.num_codes * size * row_bytes(width, method.bits)
