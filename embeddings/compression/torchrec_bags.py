"""Opens compressed tables as TorchRec's own collections: one to continue training, one to serve from.

    bags = training_bags(read_tables(Path("small")))     # EmbeddingBagCollection of float32
    bags = serving_bags(read_tables(Path("small")))      # torchrec.quant.EmbeddingBagCollection of the stored bytes
    bags(kjt)                                            # ids by the names of the tables -> pooled rows

Both are for tables whose rows are sums of stored rows: rows of any bits, hashed ones, sums of codes, QR with "add", and
heads with such tails. Others are read and trained by `composed.compose`.

Summing over a bag and summing the parts of a row commute, so a rule that adds becomes an ordinary
EmbeddingBagCollection behind a module that turns each id into the ids of its parts. It is exact for bags of any size.
Dimensions: n ids, M stored rows of an id, B examples.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from dlrmctl.embeddings.compression.artifact import Artifact
from dlrmctl.embeddings.compression.rules.headed import Headed
from dlrmctl.embeddings.compression.rules.quantize import INTEGER_BITS, SCALE_BIAS_BYTES, padded_dim
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.compression.rules.sharing import Codes, Hashed, Paired

_TYPES = {32: DataType.FP32, 16: DataType.FP16, 8: DataType.INT8, 4: DataType.INT4, 2: DataType.INT2}
# TorchRec's own default of 16 fills rows up: 32 bytes where 16 columns of 8 bits need 20.
_ROW_ALIGNMENT = 1


def read_tables(path: Path) -> dict[str, Compressed]:
    """The tables of a directory that compression wrote, by name.

    Raises:
        ValueError: if there are none, or they are damaged.
    """
    artifact = Artifact(path)
    return {name: artifact.read(name) for name in artifact.tables}


class AdditiveBags(nn.Module):
    """Compressed tables behind TorchRec's interface: KJT of ids to KeyedTensor of pooled rows, by the tables' names.

    Args:
        tables: whose rows are sums of stored rows.
        bags: a collection of the expansion's keys.

    Attributes:
        expansion, bags: the two halves; `bags` may be sharded, and replaced by what sharding gives.
    """

    def __init__(self, tables: Mapping[str, Compressed], bags: nn.Module) -> None:
        super().__init__()
        self.expansion, self.bags = IdExpansion(tables), bags
        self._widths = [table.dim for table in tables.values()]

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedTensor:
        pooled = self.bags(self.expansion(kjt)).to_dict()  # by key: sharding changes the order
        vectors = []
        for found in self.expansion.blocks.values():
            parts = [_scaled(pooled[key], block.rows.exponent) for key, block in found.items()]
            vectors.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))
        return KeyedTensor(list(self.expansion.names), self._widths, torch.cat(vectors, dim=1))


def training_bags(tables: Mapping[str, Compressed]) -> AdditiveBags:
    """An EmbeddingBagCollection of the tables' numbers as float32 parameters; codes and bitmaps stay fixed.

    Shard or train `.bags` like any other; its rows take fused row-wise AdaGrad.

    Raises:
        ValueError: for a table whose rows are not sums.
    """
    found = _blocks(tables)
    bags = EmbeddingBagCollection(device=torch.device("cpu"), tables=[_config(key, b, 32) for key, b in found.items()])
    with torch.no_grad():
        for key, block in found.items():
            # Without the exponent, which the sums are multiplied by afterwards.
            bags.embedding_bags[key].weight.copy_(block.rows.expand() * 2.0**block.rows.exponent)
    return AdditiveBags(tables, bags)


def serving_bags(tables: Mapping[str, Compressed]) -> AdditiveBags:
    """A quantized collection that serves the stored bytes as they are, with float32 results. On CPU.

    Raises:
        ValueError: for a table whose rows are not sums, or whose columns FBGEMM has no kernel for.
    """
    found = _blocks(tables)
    for key, block in found.items():
        rows = block.rows
        if rows.dim % 4 or (rows.bits in INTEGER_BITS and padded_dim(rows.dim, rows.bits) != rows.dim):
            raise ValueError(
                f"{key}: {rows.dim} columns of {rows.bits} bits; the kernels need a multiple of 4, and of 8 for 2 bits"
            )
    bags = QuantEmbeddingBagCollection(
        tables=[_config(key, block, block.rows.bits) for key, block in found.items()],
        is_weighted=False,
        device=torch.device("cpu"),
        output_dtype=torch.float32,
        table_name_to_quantized_weights={key: _stored(block) for key, block in found.items()},
        row_alignment=_ROW_ALIGNMENT,
    )
    return AdditiveBags(tables, bags)


@dataclass(frozen=True)
class AdditiveBlock:
    """Stored rows that ids of a table are sums of.

    Attributes:
        part: their name within the table.
        rows: the stored rows.
        find: ids, int64 [n], to rows of the block [n, M]; -1 where an id has none here.
    """

    part: str
    rows: StoredRows
    find: Callable[[Tensor], Tensor]


def _blocks(tables: Mapping[str, Compressed]) -> dict[str, AdditiveBlock]:
    return {key: block for name, table in tables.items() for key, block in keyed_blocks(name, table).items()}


def _config(key: str, block: AdditiveBlock, bits: int) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=key,
        num_embeddings=block.rows.num_rows,
        embedding_dim=block.rows.dim,
        feature_names=[key],
        pooling=PoolingType.SUM,
        data_type=_TYPES[bits],
    )


def _stored(block: AdditiveBlock) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The bytes of the codes, and of scale and bias; of plain floats their bytes."""
    values = block.rows.values
    if block.rows.bits not in INTEGER_BITS:
        return values.view(torch.uint8), None
    return values[:, :-SCALE_BIAS_BYTES], values[:, -SCALE_BIAS_BYTES:]


def blocks(table: Compressed) -> list[AdditiveBlock]:
    """The blocks of stored rows whose sums are the rows of a table.

    Raises:
        ValueError: for a rule whose rows are not sums: "pca", "isometry", and products or rows in line.
    """
    if isinstance(table, StoredRows):
        return [AdditiveBlock("rows", table, lambda ids: ids[:, None])]
    if isinstance(table, Hashed):
        return [AdditiveBlock("buckets", table.buckets, lambda ids: table.partition(ids)[0][:, None])]
    if isinstance(table, Paired) and table.operation == "add":
        return [
            AdditiveBlock("quotient", table.quotient, lambda ids: table.partition(ids)[0][:, None]),
            AdditiveBlock("remainder", table.remainder, lambda ids: table.partition(ids)[1][:, None]),
        ]
    if isinstance(table, Codes) and table.operation == "sum":
        firsts = torch.arange(table.num_codes) * table.size
        return [AdditiveBlock("codebook", table.codebook, lambda ids: table.codes[ids].long() + firsts.to(ids.device))]
    if isinstance(table, Headed):
        head = AdditiveBlock("head", table.head, lambda ids: _where(*table.place(ids))[:, None])
        return [head, *(_in_tail(table, block) for block in blocks(table.tail))]
    raise ValueError(f"rule {table.rule!r} does not only add rows; composed.compose reads and trains every rule")


def _where(kept: Tensor, positions: Tensor) -> Tensor:
    return positions.masked_fill(~kept, -1)


def _in_tail(table: Headed, block: AdditiveBlock) -> AdditiveBlock:
    def find(ids: Tensor) -> Tensor:
        in_head, position = table.place(ids)
        rows = block.find(torch.where(in_head, 0, position))
        return rows.masked_fill(in_head[:, None], -1)

    return AdditiveBlock(f"tail:{block.part}", block.rows, find)


def _scaled(values: Tensor, exponent: int) -> Tensor:
    return values * 2.0**-exponent if exponent else values


class IdExpansion(nn.Module):
    """Maps a KJT of ids to a KJT of rows of blocks: one key for each block, in the order of `keys`.

    Args:
        tables: by the keys of the incoming ids; of them, this module keeps codes and bitmaps.
    """

    def __init__(self, tables: Mapping[str, Compressed]) -> None:
        super().__init__()
        self.names = tuple(tables)
        self.tables = nn.ModuleList(_without_rows(table) for table in tables.values())
        self.blocks = {name: keyed_blocks(name, table) for name, table in zip(tables, self.tables, strict=True)}
        self.keys = [key for found in self.blocks.values() for key in found]

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Expands a batch.

        Raises:
            ValueError: if a table's key is missing.
        """
        bags = kjt.to_dict()
        values, lengths = [], []
        for name in self.names:
            if name not in bags:
                raise ValueError(f"the batch has no feature {name!r}, only {', '.join(kjt.keys())}")
            ids, sizes = bags[name].values().long(), bags[name].lengths()
            for block in self.blocks[name].values():
                rows = block.find(ids)
                there = rows >= 0
                values.append(rows[there])
                lengths.append(_summed(there.sum(1), sizes))
        return KeyedJaggedTensor(self.keys, torch.cat(values), lengths=torch.cat(lengths), stride=kjt.stride())


def keyed_blocks(name: str, table: nn.Module) -> dict[str, AdditiveBlock]:
    """The blocks of a table by the keys of their ids, "TABLE:PART".

    Raises:
        ValueError: for a rule whose rows are not sums.
    """
    assert isinstance(table, Compressed)
    try:
        found = blocks(table)
    except ValueError as problem:
        raise ValueError(f"table {name}: {problem}") from None
    # TorchRec makes modules of these names: without points, and not called like a method, such as "half".
    return {f"{name.replace('.', ':')}:{block.part}": block for block in found}


def _without_rows(table: Compressed) -> Compressed:
    """A copy whose stored rows are left out: collections hold them."""
    rows = [module.values for module in table.modules() if isinstance(module, StoredRows)]
    return copy.deepcopy(table, {id(values): values.new_empty(0) for values in rows})


def _summed(counts: Tensor, sizes: Tensor) -> Tensor:
    """The sum of each bag's next `sizes` counts, int32 [B]."""
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    last = sizes.long().cumsum(0)
    return (ends[last] - ends[last - sizes]).int()
