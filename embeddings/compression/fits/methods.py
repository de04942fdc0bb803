"""Compression methods by short names: "int8", "pca8-int4", "qr-mult16-int8", "head2%-int8+rq2x256".

The size of a method's table is known before fitting.
"""

import re
from dataclasses import dataclass, replace

import torch

from dlrmctl.embeddings.compression.fits.codebook import fit_codes
from dlrmctl.embeddings.compression.fits.isometric import fit_isometric
from dlrmctl.embeddings.compression.fits.pairs import fit_buckets, fit_pair
from dlrmctl.embeddings.compression.fits.pca import fit_pca
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.isometry.compare import OBJECTIVES
from dlrmctl.embeddings.compression.rules.headed import Headed, bitmap_bytes, choose_head, membership
from dlrmctl.embeddings.compression.rules.pack import pack, pack_chunks
from dlrmctl.embeddings.compression.rules.quantize import row_bytes
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.compression.rules.sharing import Codes, Hashed, Paired, code_dtype
from dlrmctl.embeddings.partitions.basic import QuotientRemainder, ceil_div

KINDS = ("rows", "pca", "hash", "qr", "rq", "pq", "nile-pro", "fromax")
_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "int2": 2}
_NAME_OF_BITS = {bits: name for name, bits in _BITS.items()}
_DEFAULT_BITS = {"rows": 8, "pca": 8, "hash": 8, "qr": 8, "rq": 8, "pq": 8, "nile-pro": 8, "fromax": 8}
_PATTERN = re.compile(
    r"(?:head(?P<share>[0-9.]+)%(?:-(?P<head>fp32|fp16|int8|int4|int2))?\+)?"
    r"(?:(?P<alone>fp32|fp16|int8|int4|int2)|(?:pca(?P<rank>\d+)|hash(?P<buckets>\d+)"
    r"|qr-(?P<operation>mult|add|concat)(?P<collisions>\d+)(?P<large>[qr]?)|(?P<codes>rq|pq)(?P<count>\d+)x(?P<size>\d+)"
    r"|(?P<objective>nile-pro|fromax)(?P<dims>\d+))"
    r"(?:-(?P<bits>fp32|fp16|int8|int4|int2))?)(?P<search>-search)?"
)
_GROUPS = {"pca": "rank", "hash": "buckets", "qr": "operation"}


@dataclass(frozen=True)
class Method:
    """A method and its sizes.

    Attributes:
        kind: "rows", "pca", "hash", "qr", "rq" (sums of codes' rows), "pq" (codes' rows concatenated), or a
            near-isometric map, "nile-pro" or "fromax".
        bits: bits of the stored numbers: the rows, coordinates, buckets, both tables of "qr", or codebooks.
        rank: rank of "pca" and the near-isometric maps.
        collisions: ids per bucket of "hash", per row of the large table of "qr".
        operation, large: for "qr", as in `embeddings.tables.FeatureTable`; "qr-mult16q" has a large quotient table. Ids
            sorted by frequency lose less with a large remainder table, where frequent ids share no row.
        num_codes, size: for "rq" and "pq": codes per row, and rows per codebook (256 for codes of one byte).
        search: search a better range for each quantized row.
        head_share: the share of the rows, the heaviest, that keep their own row at `head_bits` bits.
    """

    kind: str
    bits: int
    rank: int = 0
    collisions: int = 0
    operation: str = "mult"
    large: str = "remainder"
    num_codes: int = 0
    size: int = 256
    search: bool = False
    head_share: float = 0.0
    head_bits: int = 8

    def __post_init__(self) -> None:
        needs = {"pca": "rank", "hash": "collisions", "qr": "collisions", "rq": "num_codes", "pq": "num_codes"}
        needs |= dict.fromkeys(OBJECTIVES, "rank")
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        if self.kind in needs and getattr(self, needs[self.kind]) < 1:
            raise ValueError(f"{needs[self.kind]}={getattr(self, needs[self.kind])} of {self.kind} must be at least 1")
        if self.kind in OBJECTIVES and self.head_share:
            raise ValueError(f"{self.kind} bounds the distances of all rows, so it cannot have a head")
        if not 0 <= self.head_share < 1:
            raise ValueError(f"a head of {self.head_share:.0%} of the rows must be at least 0 and below 100 %")
        for bits in (self.bits, self.head_bits):
            if bits not in _NAME_OF_BITS:
                raise ValueError(f"{bits=} must be one of 32, 16, 8, 4, 2")

    @classmethod
    def parse(cls, name: str) -> "Method":
        """Parses a method's name; the inverse of `name`.

        Raises:
            ValueError: if there is no such method.
        """
        found = _PATTERN.fullmatch(name.replace(" ", ""))
        if found is None:
            raise ValueError(
                f"method {name!r} is unknown; examples: fp16, int8, int4-search, pca8-int4, rq2x256, pq4x256, "
                "qr-mult16-int8, hash16-int8, nile-pro12, head2%+rq2x256"
            )
        kind = next(
            (kind for kind, group in _GROUPS.items() if found[group] is not None),
            found["codes"] or found["objective"] or "rows",
        )  # fmt: skip
        bits = found["alone"] or found["bits"]
        return cls(
            kind,
            _BITS[bits] if bits else _DEFAULT_BITS[kind],
            rank=int(found["rank"] or found["dims"] or 0),
            collisions=int(found["buckets"] or found["collisions"] or 0),
            operation=found["operation"] or "mult",
            large="quotient" if found["large"] == "q" else "remainder",
            num_codes=int(found["count"] or 0),
            size=int(found["size"] or 256),
            search=found["search"] is not None,
            head_share=float(found["share"] or 0) / 100,
            head_bits=_BITS[found["head"] or "int8"],
        )

    @property
    def name(self) -> str:
        """The short name, as `parse` reads it."""
        bits = _NAME_OF_BITS[self.bits]
        sizes = {
            "rows": bits,
            "pca": f"pca{self.rank}-{bits}",
            **{objective: f"{objective}{self.rank}-{bits}" for objective in OBJECTIVES},
            "hash": f"hash{self.collisions}-{bits}",
            "qr": f"qr-{self.operation}{self.collisions}{'q' if self.large == 'quotient' else ''}-{bits}",
        }
        own = sizes.get(self.kind, f"{self.kind}{self.num_codes}x{self.size}-{bits}")
        head = f"head{100 * self.head_share:g}%-{_NAME_OF_BITS[self.head_bits]}+" if self.head_share else ""
        return head + own + ("-search" if self.search else "")

    def fit(self, table: TableRows, *, seed: int = 0) -> Compressed:
        """Compresses a table. The same seed gives the same result.

        Raises:
            ValueError: if the table has a value that is not finite, or the method does not fit its columns.
        """
        largest = table.largest()
        heads = head_rows(self.head_share, table.num_rows)
        return self._fit_headed(table, heads, largest, seed) if heads else self._fit(table, largest, seed)

    def without_head(self) -> "Method":
        """The method of the rows outside the head."""
        return replace(self, head_share=0.0)

    def _fit_headed(self, table: TableRows, heads: int, largest: float, seed: int) -> Headed:
        weights = table.weights if table.index is None else table.weights[table.index]
        chosen = choose_head(weights, heads)
        in_head = torch.zeros(table.num_rows, dtype=torch.bool)
        in_head[slice(heads) if chosen is None else chosen] = True
        head = Method("rows", self.head_bits, search=self.search)._fit(
            table.subset(in_head.nonzero().squeeze(1)), largest, seed
        )
        tail = self._fit(table.subset((~in_head).nonzero().squeeze(1)), largest, seed)
        return Headed(head, tail) if chosen is None else Headed(head, tail, *membership(chosen, table.num_rows))  # type: ignore[arg-type]

    def _fit(self, table: TableRows, largest: float, seed: int) -> Compressed:
        if self.kind == "rows":
            rows = ((part, values) for part, values, _ in table.chunks("rows"))
            return pack_chunks(rows, (table.num_rows, table.dim), self.bits, largest, search=self.search)
        if self.kind == "pca":
            return fit_pca(table, self.rank, self.bits, search=self.search)
        if self.kind in OBJECTIVES:
            return fit_isometric(table, self.rank, self.kind, self.bits, search=self.search, seed=seed)
        if self.kind == "hash":
            buckets = fit_buckets(table, ceil_div(table.num_rows, self.collisions))
            return Hashed(table.num_rows, pack(buckets, self.bits, search=self.search))
        if self.kind == "qr":
            divisor = QuotientRemainder.of(table.num_rows, self.collisions, large=self.large).divisor
            pair = fit_pair(table, divisor, self.operation)
            tables = (pack(values, self.bits, search=self.search) for values in (pair.quotient, pair.remainder))
            return Paired(table.num_rows, divisor, self.operation, *tables)
        operation = "sum" if self.kind == "rq" else "concat"
        fitted = fit_codes(table, self.num_codes, self.size, operation, seed=seed)
        size = fitted.codebooks.shape[1]
        codebook = pack(fitted.codebooks.flatten(0, 1), self.bits, search=self.search)
        return Codes(fitted.codes, codebook, size, operation)


def head_rows(share: float, rows: int) -> int:
    """Returns the number of rows in a head; 0 if it would be none or all of them."""
    heads = round(share * rows)
    return heads if heads < rows else 0


def default_grid(dim: int) -> list[Method]:
    """Returns methods of all sizes that are worth trying on a table of `dim` columns, the most exact first."""
    names = ["fp32", "fp16", "int8"]
    names += [f"pca{rank}-int4" for rank in sorted({dim, dim // 2, dim // 4}, reverse=True) if rank >= 4]
    names += [f"pca{dim}-int2-search"]
    names += [f"rq{count}x256" for count in (8, 4, 3, 2, 1) if 2 * count <= dim]
    names += [f"head{share}%+rq{count}x256" for share in (10, 5, 2, 1) for count in (2, 1) if 2 * count <= dim]
    return [Method.parse(name) for name in names]


def least_bytes(method: Method, rows: int, dim: int) -> int:
    """Returns the bytes of all parts of a table of `rows` rows and `dim` columns.

    A head may need a bitmap of its ids, which is not counted here.
    """
    heads = head_rows(method.head_share, rows)
    return (heads * row_bytes(dim, method.head_bits) if heads else 0) + _bytes(method, rows - heads, dim)


def most_bytes(method: Method, rows: int, dim: int) -> int:
    """As `least_bytes`, with a bitmap for the ids of a head."""
    bitmap = bitmap_bytes(rows) if head_rows(method.head_share, rows) else 0
    return least_bytes(method, rows, dim) + bitmap


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
