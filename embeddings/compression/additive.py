"""Compressed tables behind TorchRec's collections: rows that are sums of stored rows, looked up and summed at once.

Summing over a bag and summing the parts of a row commute, so a rule that adds becomes an ordinary
EmbeddingBagCollection behind a module that turns each id into the ids of its parts. It is exact for bags of any size.
Dimensions: n ids, M stored rows of an id, B examples.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

import embeddings.quiet  # noqa: F401
from embeddings.compression.head import Headed
from embeddings.compression.rules import Compressed, Rows
from embeddings.compression.shared import Codes, Hashed, Paired


@dataclass(frozen=True)
class Block:
    """Stored rows that ids of a table are sums of.

    Attributes:
        part: their name within the table.
        rows: themselves.
        find: ids, int64 [n], to rows of the block [n, M]; -1 where an id has none here.
    """

    part: str
    rows: Rows
    find: Callable[[Tensor], Tensor]


def blocks(table: Compressed) -> list[Block]:
    """What the rows of a table are sums of.

    Raises:
        ValueError: for a rule whose rows are not sums: "pca", "isometry", and products or rows in line.
    """
    if isinstance(table, Rows):
        return [Block("rows", table, lambda ids: ids[:, None])]
    if isinstance(table, Hashed):
        return [Block("buckets", table.buckets, lambda ids: table.partition(ids)[0][:, None])]
    if isinstance(table, Paired) and table.operation == "add":
        return [
            Block("quotient", table.quotient, lambda ids: table.partition(ids)[0][:, None]),
            Block("remainder", table.remainder, lambda ids: table.partition(ids)[1][:, None]),
        ]
    if isinstance(table, Codes) and table.operation == "sum":
        firsts = torch.arange(table.num_codes) * table.size
        return [Block("codebook", table.codebook, lambda ids: table.codes[ids].long() + firsts.to(ids.device))]
    if isinstance(table, Headed):
        head = Block("head", table.head, lambda ids: _where(*table.place(ids))[:, None])
        return [head, *(_in_tail(table, block) for block in blocks(table.tail))]
    raise ValueError(f"rule {table.rule!r} does not only add rows; composed.compose reads and trains every rule")


def _where(kept: Tensor, positions: Tensor) -> Tensor:
    return positions.masked_fill(~kept, -1)


def _in_tail(table: Headed, block: Block) -> Block:
    def find(ids: Tensor) -> Tensor:
        in_head, position = table.place(ids)
        rows = block.find(torch.where(in_head, 0, position))
        return rows.masked_fill(in_head[:, None], -1)

    return Block(f"tail:{block.part}", block.rows, find)


def _scaled(values: Tensor, exponent: int) -> Tensor:
    return values * 2.0**-exponent if exponent else values


class IdExpansion(nn.Module):
    """A KJT of ids in, a KJT of rows of blocks out: one key for each block, in the order of `keys`.

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
        """
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


def keyed_blocks(name: str, table: nn.Module) -> dict[str, Block]:
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
    rows = [module.values for module in table.modules() if isinstance(module, Rows)]
    return copy.deepcopy(table, {id(values): values.new_empty(0) for values in rows})


def _summed(counts: Tensor, sizes: Tensor) -> Tensor:
    """The sum of each bag's next `sizes` counts, int32 [B]."""
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    last = sizes.long().cumsum(0)
    return (ends[last] - ends[last - sizes]).int()


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
