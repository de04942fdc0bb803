"""Compressed tables: named tensors, and a rule that maps an id to a row of float32.

A `Compressed` is a module, so its parts move between devices and are in state dicts like any other. Rules nest: a rule
reads rows from `StoredRows` with some number of bits.

Dimensions: N rows, D columns.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.compression.rules.quantize import INTEGER_BITS, decode_rows, encode_rows, row_bytes

_RULES: dict[str, type["Compressed"]] = {}
_MOST_EXPONENT = 64
_LARGEST_HALF = torch.finfo(torch.float16).max


class Compressed(nn.Module, ABC):
    """One compressed table.

    Attributes:
        rule: the name of the rule.
        num_rows, dim: N and D of the table it represents.
    """

    rule: ClassVar[str]
    _fixed: ClassVar[bool] = False  # a rule whose numbers must not change
    num_rows: int
    dim: int

    def __init_subclass__(cls) -> None:
        if "rule" in cls.__dict__:
            _RULES[cls.rule] = cls

    def __init__(self, num_rows: int, dim: int) -> None:
        super().__init__()
        self.num_rows, self.dim = num_rows, dim

    @abstractmethod
    def forward(self, ids: Tensor) -> Tensor:
        """Returns the float32 [n, D] rows of `ids`, int64 [n] in [0, N)."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Returns plain values that describe the table, together with `parts`."""

    @classmethod
    @abstractmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "Compressed":
        """The inverse of `spec` and `parts`; call `from_parts`, which checks its arguments."""

    def lookup(self, ids: Tensor) -> Tensor:
        """The same as `forward`."""
        return self(ids)

    @torch.no_grad()
    def expand(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Returns rows [start, stop) as float32; expand a large table in pieces."""
        stop = self.num_rows if stop is None else min(stop, self.num_rows)
        return self(torch.arange(start, stop, device=next(iter(self.parts().values())).device))

    def parts(self) -> dict[str, Tensor]:
        """Returns every stored tensor by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parts().values())

    @property
    def can_train(self) -> bool:
        """Whether `trainable` has something to train; a map with a certificate stays fixed."""
        return not any(isinstance(module, Compressed) and module._fixed for module in self.modules())

    def trainable(self, *, sparse: bool = False, rounded: bool = False) -> "Compressed":
        """Returns a copy whose numbers are float32 parameters; codes and bitmaps stay as they are.

        Args:
            sparse: make gradients of rows sparse tensors, which hold only the rows that were looked up.
            rounded: look up rows of 8, 4 or 2 bits as they would be stored, each over its own present range. Gradients
                pass through the rounding unchanged.
        """
        twin = copy.deepcopy(self)
        for module in twin.modules():
            if isinstance(module, StoredRows):
                module.sparse = sparse
                module.rounding = (module.bits, module.exponent) if rounded and module.bits in INTEGER_BITS else None
            if isinstance(module, Compressed):
                module._make_trainable()
        return twin

    def _make_trainable(self) -> None:
        """Turns this module's own floating buffers, but not those of submodules, into parameters."""

    def _into_parameter(self, name: str, values: Tensor) -> None:
        delattr(self, name)
        self.register_parameter(name, nn.Parameter(values))


def from_parts(spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Compressed:
    """Returns the table that `spec()` and `parts()` describe.

    Raises:
        ValueError: if the rule is unknown, or parts are missing, superfluous, or of another shape or type.
    """
    rule = spec.get("rule")
    if not isinstance(rule, str) or rule not in _RULES:
        raise ValueError(f"{rule=} is unknown, this version reads {', '.join(sorted(_RULES))}")
    try:
        built = _RULES[rule].build(spec, parts)
    except KeyError as missing:
        raise ValueError(f"rule {rule}: {missing} is missing") from None
    except (
        TypeError,
        AttributeError,
        IndexError,
        ArithmeticError,
        RuntimeError,
    ) as problem:  # wrong types and shapes
        raise ValueError(f"rule {rule}: its spec does not describe a table: {problem}") from None
    superfluous = parts.keys() - built.parts().keys()
    if superfluous:
        raise ValueError(f"rule {rule}: {', '.join(sorted(superfluous))} does not belong to it")
    return built


def under(parts: Mapping[str, Tensor], child: str) -> dict[str, Tensor]:
    """Returns the parts of a nested rule, by their names there."""
    prefix = child + "."
    return {name[len(prefix) :]: tensor for name, tensor in parts.items() if name.startswith(prefix)}


def expect(condition: bool, message: str) -> None:
    """Raises ValueError unless the parts of a table match its spec."""
    if not condition:
        raise ValueError(f"damaged table: {message}")


class StoredRows(Compressed):
    """A row per id, of 32, 16, 8, 4 or 2 bits per value.

    Args:
        values: float32 or float16 [N, D], or uint8 [N, bytes] as `quantize.encode_rows` writes it.
        dim: D.
        bits: of a value.
        exponent: values are stored times 2**exponent. It is 0 unless a table's values are too small or large for
            float16.

    Attributes:
        sparse, rounding: of a trainable copy: whether gradients are sparse, and bits and exponent that rows are
            rounded to when they are looked up.
    """

    rule = "rows"
    values: Tensor

    def __init__(self, values: Tensor, dim: int, bits: int, exponent: int = 0) -> None:
        super().__init__(values.shape[0], dim)
        dtype = {32: torch.float32, 16: torch.float16}.get(bits, torch.uint8)
        width = row_bytes(dim, bits) // dtype.itemsize
        expect(values.shape == (values.shape[0], width), f"{tuple(values.shape)} instead of {width} in a row")
        expect(values.dtype == dtype, f"{values.dtype} for {bits} bits")
        expect(abs(exponent) <= _MOST_EXPONENT, f"{exponent=}")
        self.bits, self.exponent, self.sparse = bits, exponent, False
        self.rounding: tuple[int, int] | None = None
        self.register_buffer("values", values)

    def forward(self, ids: Tensor) -> Tensor:
        if self.bits in INTEGER_BITS:
            rows = decode_rows(self.values.index_select(0, ids), self.bits, self.dim)
        else:
            rows = nn.functional.embedding(ids, self.values, sparse=self.sparse).float()
        if self.rounding is not None:
            rows = _round_trip(rows.detach(), *self.rounding) + (rows - rows.detach())
        return rows * 2.0**-self.exponent if self.exponent else rows

    def spec(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "rows": self.num_rows,
            "dim": self.dim,
            "bits": self.bits,
            "exponent": self.exponent,
        }

    @classmethod
    def build(cls, spec: Mapping[str, Any], parts: Mapping[str, Tensor]) -> "StoredRows":
        built = cls(parts["values"], spec["dim"], spec["bits"], spec["exponent"])
        expect(built.num_rows == spec["rows"], f"{built.num_rows} rows instead of {spec['rows']}")
        return built

    def _make_trainable(self) -> None:
        values = self.expand()
        self.bits, self.exponent = 32, 0
        self._into_parameter("values", values)


def _round_trip(rows_ND: Tensor, bits: int, exponent: int) -> Tensor:
    """Returns the rows as they would be read after storing them."""
    scaled = (rows_ND * 2.0**exponent).clamp(-_LARGEST_HALF, _LARGEST_HALF)
    return decode_rows(encode_rows(scaled, bits), bits, rows_ND.shape[1]) * 2.0**-exponent


def rows_at(spec: Mapping[str, Any], parts: Mapping[str, Tensor], child: str, *, rows: int, dim: int) -> StoredRows:
    """Returns the `StoredRows` of another rule's part `child`, with the rows and columns it needs."""
    found = StoredRows.build(spec[child], under(parts, child))
    shape = (found.num_rows, found.dim)
    expect(shape == (rows, dim), f"{child} has shape {shape} instead of {(rows, dim)}")
    return found
