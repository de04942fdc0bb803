"""Codecs for the vectors that ranks exchange, and the gradients that come back.

A codec encodes each vector by itself, into a number of bytes that follows from its length, since receivers compute the
sizes of what they get. A message of N vectors of width D:

    topk:K        the K numbers of largest magnitude of every vector, in bfloat16, and their columns: 3 K bytes instead
                  of 4 D (4 K above 256 columns); all others are 0. Gradients are cut on their own
    fp16, bf16    FBGEMM's, 2 D bytes. With fp16, gradients, which are small, are scaled up on the way
    int8          FBGEMM's: 8 bits and, for every 32 numbers or every vector, a scale and an offset

Source of top-k on the way between tables and MLPs: Gupta et al., arXiv:2010.08899, which cuts at a threshold. Its sizes
would depend on the data, so here every vector keeps as many numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.quantize_comm import QuantizationContext
from fbgemm_gpu.quantize_comm import QuantizedCommCodec as FbgemmCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.types import CommOp, QuantizedCommCodecs

from dlrmctl.embeddings.tables import Table

_PRECISIONS = {"fp16": SparseType.FP16, "bf16": SparseType.BF16, "int8": SparseType.INT8}
CODECS = ("topk", *_PRECISIONS)
WHOLE_TABLES_ONLY = ("topk", "int8")  # their messages cannot be added up, as row-wise sharding does
_INT8_BLOCK = 32
_BYTE_COLUMNS = 256  # columns that a byte can name


class CodecError(ValueError):
    """Raised when a codec cannot serve a table."""


@dataclass
class TableExchange:
    """Switches the codecs of a sharded model on and off, and counts the bytes of what it encodes.

    Attributes:
        active: whether messages are encoded; the same on every rank. Scoring leaves it off.
        raw_bytes, sent_bytes: of this rank's messages while active, as float32 and as encoded, in both directions. The
            part that each rank keeps, one of as many as there are ranks, is included.
    """

    active: bool = False
    raw_bytes: int = 0
    sent_bytes: int = 0


class TopK:
    """Keeps the `k` numbers of largest magnitude of every vector of `dim`.

    Shapes:
        N x dim float32 numbers -> N x `bytes_per_vector` uint8, flat.
    """

    def __init__(self, k: int, dim: int) -> None:
        if not 1 <= k <= dim:
            raise ValueError(f"{k=} must be at least 1, and at most the width of the vectors, {dim}")
        self.k, self.dim = k, dim
        self._column_bytes = 1 if dim <= _BYTE_COLUMNS else 2
        self.bytes_per_vector = k * (2 + self._column_bytes)

    def encode(self, values: Tensor, ctx: Any = None) -> Tensor:
        values_ND = values.reshape(-1, self.dim)
        columns_NK = values_ND.abs().topk(self.k, dim=1, sorted=False).indices
        kept_NK = values_ND.gather(1, columns_NK).bfloat16()  # the range of float32: no gradient is too small or large
        columns_NK = columns_NK.to(torch.uint8 if self._column_bytes == 1 else torch.int16)
        return torch.cat([kept_NK.view(torch.uint8), columns_NK.view(torch.uint8)], dim=1).flatten()

    def decode(self, message: Tensor, ctx: Any = None) -> Tensor:
        message_NB = message.view(-1, self.bytes_per_vector)
        kept, columns = message_NB.split([2 * self.k, self._column_bytes * self.k], dim=1)
        columns_NK = columns.contiguous()
        if self._column_bytes == 2:
            columns_NK = columns_NK.view(torch.int16)
        values_ND = torch.zeros(len(message_NB), self.dim, device=message.device)
        values_ND.scatter_(1, columns_NK.long(), kept.contiguous().view(torch.bfloat16).float())
        return values_ND.flatten()

    def calc_quantized_size(self, input_len: int, ctx: Any = None) -> int:
        return input_len // self.dim * self.bytes_per_vector

    def create_context(self) -> Any:
        return None


class _Fbgemm(FbgemmCodec):
    """FBGEMM's codec, with blocks of any size for int8, and a scale that is divided out in float32."""

    def __init__(self, precision: SparseType, *, block: int, scale: float = 1.0) -> None:
        super().__init__(precision)
        self._block, self._scale = block, scale

    def encode(self, values: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        message: Tensor = super().encode(values * self._scale if self._scale != 1 else values, ctx)
        return message

    def decode(self, message: Tensor, ctx: QuantizationContext | None = None) -> Tensor:
        values: Tensor = super().decode(message, ctx)
        return values / self._scale if self._scale != 1 else values

    def create_context(self) -> QuantizationContext | None:
        return QuantizationContext(self._block)


class _Switched:
    """Encodes with a codec while the exchange is active, and leaves messages as they are otherwise."""

    def __init__(self, codec: Any, exchange: TableExchange) -> None:
        self._codec, self._exchange = codec, exchange

    def encode(self, values: Tensor, ctx: Any = None) -> Tensor:
        if not self._exchange.active:
            return values
        message: Tensor = self._codec.encode(values, ctx)
        self._exchange.raw_bytes += values.numel() * 4
        self._exchange.sent_bytes += message.numel() * message.element_size()
        return message

    def decode(self, message: Tensor, ctx: Any = None) -> Tensor:
        values: Tensor = self._codec.decode(message, ctx) if self._exchange.active else message
        return values

    def calc_quantized_size(self, input_len: int, ctx: Any = None) -> int:
        return int(self._codec.calc_quantized_size(input_len, ctx)) if self._exchange.active else input_len

    def create_context(self) -> Any:
        return self._codec.create_context()

    def padded_size(self, values: Tensor, dim_per_rank: list[int], my_rank: int, ctx: Any) -> tuple[int, int]:
        return values.shape[-1], 0

    @property
    def quantized_dtype(self) -> torch.dtype:
        return torch.uint8


def check_codec(kind: str, k: int, tables: Sequence[Table], row_wise: Sequence[str]) -> None:
    """Checks that a codec can serve all tables.

    Args:
        kind: one of `CODECS`.
        k: numbers that "topk" keeps of each vector.
        row_wise: names of the tables whose rows are cut over the ranks.

    Raises:
        CodecError: naming the first table that it cannot serve.
    """
    if kind in WHOLE_TABLES_ONLY and row_wise:
        raise CodecError(f"{kind} cannot be used for the table {row_wise[0]}, whose rows are divided over the ranks")
    if kind == "topk":
        width = tables[0].dim
        for table in tables:
            if table.dim != width:
                raise CodecError(
                    f"topk needs tables of one width, and {table.name} has {table.dim} columns, "
                    f"{tables[0].name} {width}"
                )
        if k > width:
            raise CodecError(f"topk:{k} keeps {k} of the {width} numbers of a row of {tables[0].name}")


def codec_registry(
    kind: str, k: int, tables: Sequence[Table], batch_size: int, exchange: TableExchange
) -> dict[str, QuantizedCommCodecs]:
    """Returns the codecs of every collective, for TorchRec's sharders.

    Args:
        kind, k, tables: see `check_codec`.
        batch_size: examples per rank and step.
    """
    width = math.gcd(*(table.dim for table in tables))
    registry = {}
    for op in CommOp:
        if kind == "topk":
            if op == CommOp.POOLED_EMBEDDINGS_REDUCE_SCATTER:
                continue
            forward: Any = TopK(k, width)
            backward: Any = forward
        else:
            # Messages of sums are cut into blocks as a whole; lists of rows have any length.
            fits = op == CommOp.POOLED_EMBEDDINGS_ALL_TO_ALL and width * batch_size % _INT8_BLOCK == 0
            block = _INT8_BLOCK if fits else width
            # A gradient of a mean over the batch is as small as the batch is large; float16 ends at 6e-8 and 65504.
            scale = 2.0 ** (8 + math.ceil(math.log2(batch_size))) if kind == "fp16" else 1.0
            forward = _Fbgemm(_PRECISIONS[kind], block=block)
            backward = _Fbgemm(_PRECISIONS[kind], block=block, scale=scale)
        registry[op.name] = QuantizedCommCodecs(_Switched(forward, exchange), _Switched(backward, exchange))
    return registry
