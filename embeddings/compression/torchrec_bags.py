"""Opens compressed tables as TorchRec's own collections, to continue training or to serve.

    bags = training_bags(read_tables(Path("small")))     # EmbeddingBagCollection of float32
    bags = serving_bags(read_tables(Path("small")))      # torchrec.quant.EmbeddingBagCollection of the stored bytes
    bags(kjt)                                            # ids by the names of the tables -> pooled rows

Both require tables whose rows are sums of stored rows: rows of any bits, hashed rows, sums of codes, QR with "add", and
heads with such tails. `composed.compose` reads and trains the others.

Summing over a bag and summing the parts of a row commute. So a rule that adds becomes an ordinary
EmbeddingBagCollection behind a module that turns each id into the ids of its parts; it is exact for bags of any size.
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
# TorchRec's default of 16 pads rows: to 32 bytes, where 16 columns of 8 bits need 20.
_ROW_ALIGNMENT = 1


def read_tables(path: Path) -> dict[str, Compressed]:
    """Reads the tables of a compressed directory, by name.

    Raises:
        ValueError: if there are none, or they are damaged.
    """
    artifact = Artifact(path)
    return {name: artifact.read(name) for name in artifact.tables}


class AdditiveBags(nn.Module):
    """Maps a KJT of ids to a KeyedTensor of pooled rows, as TorchRec's collections do, by the tables' names.

    Args:
        tables: the tables; their rows must be sums of stored rows.
        bags: a collection of the expansion's keys.

    Attributes:
        expansion, bags: the two halves; `bags` may be replaced by its sharded form.
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
    """Returns a collection with the tables' numbers as float32 parameters; codes and bitmaps stay fixed.

    `.bags` can be sharded and trained like any other collection; its rows work with fused row-wise AdaGrad.

    Raises:
        ValueError: for a table whose rows are not sums.
    """
    found = _blocks(tables)
    bags = EmbeddingBagCollection(device=torch.device("cpu"), tables=[_config(key, b, 32) for key, b in found.items()])
    with torch.no_grad():
        for key, block in found.items():
            # Without the exponent, by which the sums are multiplied afterwards.
            bags.embedding_bags[key].weight.copy_(block.rows.expand() * 2.0**block.rows.exponent)
    return AdditiveBags(tables, bags)


def serving_bags(tables: Mapping[str, Compressed]) -> AdditiveBags:
    """Returns a quantized collection, on CPU, that serves the stored bytes as they are, with float32 results.

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
    """Stored rows whose sums are the rows of a table.

    Attributes:
        part: the name within the table.
        rows: the stored rows.
        find: maps ids, int64 [n], to rows of the block [n, M]; -1 where an id has none.
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
    """Returns the bytes of the codes, and of scale and bias; for plain floats their bytes."""
    values = block.rows.values
    if block.rows.bits not in INTEGER_BITS:
        return values.view(torch.uint8), None
    return values[:, :-SCALE_BIAS_BYTES], values[:, -SCALE_BIAS_BYTES:]


def blocks(table: Compressed) -> list[AdditiveBlock]:
    """Returns the blocks of stored rows whose sums are the rows of a table.

    Raises:
        ValueError: for a rule whose rows are not sums: "pca", "isometry", products and concatenations.
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
    raise ValueError(f"rule {table.rule!r} is not a sum of rows; composed.compose reads and trains every rule")


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
        tables: the tables by the keys of the incoming ids; this module keeps their codes and bitmaps.
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
    """Returns the blocks of a table by the keys of their ids, "TABLE:PART".

    Raises:
        ValueError: for a rule whose rows are not sums.
    """
    assert isinstance(table, Compressed)
    try:
        found = blocks(table)
    except ValueError as problem:
        raise ValueError(f"table {name}: {problem}") from None
    # TorchRec makes modules of these names: no dots, and no names of methods, such as "half".
    return {f"{name.replace('.', ':')}:{block.part}": block for block in found}


def _without_rows(table: Compressed) -> Compressed:
    """Returns a copy without the stored rows, which the collections hold."""
    rows = [module.values for module in table.modules() if isinstance(module, StoredRows)]
    return copy.deepcopy(table, {id(values): values.new_empty(0) for values in rows})


def _summed(counts: Tensor, sizes: Tensor) -> Tensor:
    """Returns the sum of each bag's next `sizes` counts, int32 [B]."""
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    last = sizes.long().cumsum(0)
    return (ends[last] - ends[last - sizes]).int()
