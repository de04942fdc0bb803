"""Rules by which ids share rows: low rank, hashing, quotient and remainder, learned codes.

Dimensions: N rows, D columns; R of a low rank; L codes per row, K rows in each codebook.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows, expect, rows_at
from dlrmctl.embeddings.partitions.basic import Hash, QuotientRemainder


class LowRank(Compressed):
    """`mean + coordinates[id] @ basis`.

    Args:
        coordinates: N rows of R columns.
        basis: float32 [R, D].
        mean: float32 [D].
    """

    rule = "pca"
    basis: Tensor
    mean: Tensor

    def __init__(self, coordinates: StoredRows, basis: Tensor, mean: Tensor) -> None:
        super().__init__(coordinates.num_rows, mean.numel())
        expect(basis.shape == (coordinates.dim, self.dim), f"basis of shape {tuple(basis.shape)}")
        expect(basis.dtype == mean.dtype == torch.float32, f"basis of {basis.dtype}, mean of {mean.dtype}")
        self.coordinates = coordinates
        self.register_buffer("basis", basis)
        self.register_buffer("mean", mean)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.addmm(self.mean, self.coordinates(ids), self.basis)

    def spec(self) -> dict[str, Any]:
        return {"rule": self.rule, "coordinates": self.coordinates.spec()}

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "LowRank":
        basis = parts["basis"]
        rows = spec["coordinates"]["rows"]
        return cls(rows_at(spec, parts, "coordinates", rows=rows, dim=basis.shape[0]), basis, parts["mean"])

    def _make_trainable(self) -> None:
        self._into_parameter("basis", self.basis)
        self._into_parameter("mean", self.mean)


class Hashed(Compressed):
    """`buckets[id mod buckets]`."""

    rule = "hash"

    def __init__(self, num_rows: int, buckets: StoredRows) -> None:
        super().__init__(num_rows, buckets.dim)
        self.buckets = buckets
        self.partition = Hash(num_rows, buckets.num_rows)

    def forward(self, ids: Tensor) -> Tensor:
        return self.buckets(self.partition(ids)[0])

    def spec(self) -> dict[str, Any]:
        return {"rule": self.rule, "rows": self.num_rows, "buckets": self.buckets.spec()}

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Hashed":
        inner = spec["buckets"]
        return cls(spec["rows"], rows_at(spec, parts, "buckets", rows=inner["rows"], dim=inner["dim"]))


class Paired(Compressed):
    """A row of the quotient table and one of the remainder table: multiplied, added, or concatenated."""

    rule = "qr"

    def __init__(
        self, num_rows: int, divisor: int, operation: str, quotient: StoredRows, remainder: StoredRows
    ) -> None:
        if operation not in ("mult", "add", "concat"):
            raise ValueError(f"{operation=} must be one of mult, add, concat")
        super().__init__(num_rows, quotient.dim + (remainder.dim if operation == "concat" else 0))
        self.partition, self.operation = QuotientRemainder(num_rows, divisor), operation
        expect(
            self.partition.table_rows == (quotient.num_rows, remainder.num_rows),
            f"tables of {quotient.num_rows} and {remainder.num_rows} rows for {num_rows} ids with {divisor=}",
        )
        expect(operation == "concat" or quotient.dim == remainder.dim, "quotient and remainder of different widths")
        self.quotient, self.remainder = quotient, remainder

    def forward(self, ids: Tensor) -> Tensor:
        quotients, remainders = self.partition(ids)
        q_ND, r_ND = self.quotient(quotients), self.remainder(remainders)
        if self.operation == "concat":
            return torch.cat([q_ND, r_ND], 1)
        return q_ND * r_ND if self.operation == "mult" else q_ND + r_ND

    def spec(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "rows": self.num_rows,
            "divisor": self.partition.divisor,
            "operation": self.operation,
            "quotient": self.quotient.spec(),
            "remainder": self.remainder.spec(),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Paired":
        tables = [
            rows_at(spec, parts, child, rows=spec[child]["rows"], dim=spec[child]["dim"])
            for child in ("quotient", "remainder")
        ]
        return cls(spec["rows"], spec["divisor"], spec["operation"], *tables)


class Codes(Compressed):
    """Each row is L codes: the sum of one row from each of L codebooks ("sum"), or these rows concatenated ("concat").

    Args:
        codes: uint8 (K <= 256) or int16 (K <= 32768), [N, L].
        codebook: L * K rows, codebook after codebook; D columns for "sum", D / L for "concat".
        size: K.
        operation: "sum" or "concat".

    Source: residual and product quantization as in Chen et al., Sensors 2010, and Jegou et al., TPAMI 2011.
    """

    rule = "codes"
    codes: Tensor

    def __init__(self, codes: Tensor, codebook: StoredRows, size: int, operation: str) -> None:
        if operation not in ("sum", "concat"):
            raise ValueError(f"{operation=} must be sum or concat")
        num_rows, self.num_codes = codes.shape
        super().__init__(num_rows, codebook.dim * (self.num_codes if operation == "concat" else 1))
        expect(codes.dtype == code_dtype(size), f"codes of {codes.dtype} for codebooks of {size}")
        expect(codebook.num_rows == self.num_codes * size, f"{codebook.num_rows} rows for {self.num_codes} x {size}")
        low, high = (int(n) for n in torch.aminmax(codes))
        expect(low >= 0 and high < size, f"codes from {low} to {high} for codebooks of {size}")
        self.codebook, self.size, self.operation = codebook, size, operation
        self.register_buffer("codes", codes)

    def forward(self, ids: Tensor) -> Tensor:
        codes_NL = self.codes.index_select(0, ids).long()
        codes_NL += torch.arange(self.num_codes, device=codes_NL.device) * self.size
        if self.operation == "concat":
            return self.codebook(codes_NL.flatten()).view(-1, self.dim)
        return self.codebook(codes_NL.flatten()).view(-1, self.num_codes, self.dim).sum(1)

    def spec(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "rows": self.num_rows,
            "size": self.size,
            "operation": self.operation,
            "codebook": self.codebook.spec(),
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Codes":
        codes, inner = parts["codes"], spec["codebook"]
        fits = codes.dim() == 2 and codes.shape[0] == spec["rows"] and codes.numel() > 0
        expect(fits, f"codes of shape {tuple(codes.shape)} for {spec['rows']} rows")
        codebook = rows_at(spec, parts, "codebook", rows=inner["rows"], dim=inner["dim"])
        return cls(codes, codebook, spec["size"], spec["operation"])


def code_dtype(size: int) -> torch.dtype:
    """Returns the narrowest integer type for codes of a codebook of `size` rows."""
    if not 1 <= size <= 2**15:
        raise ValueError(f"{size=} of a codebook must be from 1 to 32768")
    return torch.uint8 if size <= 256 else torch.int16


class Isometric(LowRank):
    """`mean + coordinates[id] @ basis`, where the coordinates are `(row - mean) @ projection.T`.

    The basis is orthonormal, so rows and their coordinates have the same distances. Training would void the
    certificate, so these numbers stay fixed.

    Args:
        coordinates, basis, mean: see `LowRank`.
        projection: float32 [R, D], for rows that are not in the table, such as queries.
        certificate: plain values; see `fit_isometric`.
    """

    rule = "isometry"
    _fixed = True
    projection: Tensor

    def __init__(
        self, coordinates: StoredRows, basis: Tensor, mean: Tensor, projection: Tensor, certificate: Mapping[str, Any]
    ) -> None:
        super().__init__(coordinates, basis, mean)
        expect(projection.shape == basis.shape, f"projection of shape {tuple(projection.shape)}")
        expect(projection.dtype == torch.float32, f"projection of {projection.dtype}")
        self.register_buffer("projection", projection)
        self.certificate = dict(certificate)

    def spec(self) -> dict[str, Any]:
        return {**super().spec(), "certificate": self.certificate}

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Isometric":
        basis = parts["basis"]
        rows = spec["coordinates"]["rows"]
        coordinates = rows_at(spec, parts, "coordinates", rows=rows, dim=basis.shape[0])
        return cls(coordinates, basis, parts["mean"], parts["projection"], spec["certificate"])

    def _make_trainable(self) -> None:
        pass
