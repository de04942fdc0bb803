"""Compressed tables in the places of trained ones: every kind of feature keeps its partitions and its operation.

Dimensions: B examples, D columns of a table, N ids of multi-hot bags.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from dlrmctl.embeddings.collection import CompositionalEmbeddings
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.tables import FeatureTable


class CompressedBags(nn.Module):
    """What an EmbeddingBagCollection that sums gives, from compressed tables.

    Args:
        tables: by their keys.
    """

    def __init__(self, tables: Mapping[str, Compressed]) -> None:
        super().__init__()
        self.keys = tuple(tables)
        self.tables = nn.ModuleList(tables.values())  # names of tables may hold what names of modules may not

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedTensor:
        bags = kjt.to_dict()
        vectors, widths = [], []
        for key, table in zip(self.keys, self.tables, strict=True):
            assert isinstance(table, Compressed)
            vectors.append(pooled(table(bags[key].values().long()), bags[key].lengths()))
            widths.append(table.dim)
        return KeyedTensor(list(self.keys), widths, torch.cat(vectors, dim=1))


class CompressedRows(nn.Module):
    """What an EmbeddingCollection gives, the row of every id, from compressed tables.

    Args:
        tables: by their keys.
    """

    def __init__(self, tables: Mapping[str, Compressed]) -> None:
        super().__init__()
        self.keys = tuple(tables)
        self.tables = nn.ModuleList(tables.values())

    def forward(self, kjt: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        bags = kjt.to_dict()
        rows = {}
        for key, table in zip(self.keys, self.tables, strict=True):
            rows[key] = JaggedTensor(table(bags[key].values().long()), lengths=bags[key].lengths())
        return rows


def compose(
    features: Sequence[FeatureTable], dim: int, tables: Mapping[str, Compressed], *, trainable: bool = False
) -> CompositionalEmbeddings:
    """The embedding module of these features, over compressed tables.

    Args:
        features: in the order of the output.
        dim: D of the embeddings.
        tables: one for each table of the features, by its name.
        trainable: keep the numbers (rows, coordinates, codebooks) as float32 parameters instead of as they are stored;
            codes, bitmaps and formulas stay fixed.

    Raises:
        ValueError: if a table is missing or of another height or width.
    """
    module = CompositionalEmbeddings(features, dim)
    for wanted in module.tables:
        table = tables.get(wanted.name)
        if table is None:
            raise ValueError(f"table {wanted.name} is missing")
        if (table.num_rows, table.dim) != (wanted.rows, wanted.dim):
            raise ValueError(
                f"table {wanted.name} has {table.num_rows:,} rows of {table.dim}, its feature needs {wanted.rows:,} of "
                f"{wanted.dim}"
            )
    if trainable:
        tables = {name: table.trainable() for name, table in tables.items()}
    if module.bags is not None:
        module.bags = CompressedBags({key: tables[key] for key in module.bag_ids.keys})
    if module.rows is not None:
        narrow = [key for key in module.row_ids.keys if tables[key].dim == dim]
        module.rows = CompressedRows({key: tables[key] for key in narrow})
    if module.wide_rows is not None:
        wide = [key for key in module.row_ids.keys if tables[key].dim != dim]
        module.wide_rows = CompressedRows({key: tables[key] for key in wide})
    return module


def pooled(rows_ND: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, D]: the sum of each example's next `lengths` rows, 0 where that is none."""
    if rows_ND.shape[0] == lengths_B.numel() and bool((lengths_B == 1).all()):
        return rows_ND
    return torch.segment_reduce(rows_ND, "sum", lengths=lengths_B.long(), axis=0, initial=0.0)
