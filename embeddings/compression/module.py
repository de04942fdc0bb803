"""The embedding module of a model whose tables are compressed: for evaluation, serving, and further training.

Dimensions: B examples, F features, D columns, N ids of multi-hot bags.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import embeddings.quiet  # noqa: F401
from embeddings.compression.rules import Compressed


class CompressedEmbeddings(nn.Module):
    """Reads each feature's rows by the rule of its table and sums over the ids of a bag.

    Every id becomes its own row before bags are summed, so all rules are exact for bags of any size. Only rows that are
    looked up are made from their codes. A model takes this module in place of `CompositionalEmbeddings`.

    Args:
        tables: the compressed table of every feature, in the order of the output; all of D columns.
        trainable: keep the numbers (rows, coordinates, codebooks) as float32 parameters instead of as they are stored;
            codes, bitmaps and formulas stay fixed.

    Raises:
        ValueError: if there are no tables, or they differ in D.
    """

    def __init__(self, tables: Mapping[str, Compressed], *, trainable: bool = False) -> None:
        super().__init__()
        dims = sorted({table.dim for table in tables.values()})
        if len(dims) != 1:
            raise ValueError(f"tables must all have the same number of columns, at least one table: {dims}")
        self.names, self.dim, self.num_features = tuple(tables), dims[0], len(tables)
        # A list: names of features may hold what names of modules may not.
        self.tables = nn.ModuleList(table.trainable() if trainable else table for table in tables.values())

    def forward(self, kjt: KeyedJaggedTensor) -> Tensor:
        """
        Args:
            kjt: ids in [0, rows) of at least these features.

        Returns:
            float32 [B, F, D]; the vector of an empty bag is 0.

        Raises:
            ValueError: if a feature is missing; on CPU also if an id is outside [0, rows).
        """
        bags = kjt.to_dict()
        missing = [name for name in self.names if name not in bags]
        if missing:
            raise ValueError(f"the batch has no feature {missing[0]!r}, only {', '.join(kjt.keys())}")
        vectors = []
        for name, table in zip(self.names, self.tables, strict=True):
            ids, lengths = bags[name].values().long(), bags[name].lengths()
            assert isinstance(table, Compressed)
            _check_ids(name, ids, table.num_rows)
            vectors.append(pooled(table(ids), lengths))
        return torch.stack(vectors, 1)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tables as they are held here."""
        return sum(table.num_bytes for table in self.tables if isinstance(table, Compressed))


def pooled(rows_ND: Tensor, lengths_B: Tensor) -> Tensor:
    """[B, D]: the sum of each example's next `lengths` rows, 0 where that is none."""
    if rows_ND.shape[0] == lengths_B.numel() and bool((lengths_B == 1).all()):
        return rows_ND
    return torch.segment_reduce(rows_ND, "sum", lengths=lengths_B.long(), axis=0, initial=0.0)


def _check_ids(name: str, ids: Tensor, rows: int) -> None:
    # Only on CPU: waiting for the answer costs a GPU more than the lookup.
    if ids.device.type == "cpu" and ids.numel():
        low, high = (int(n) for n in torch.aminmax(ids))
        if low < 0 or high >= rows:
            raise ValueError(
                f"feature {name}: id {low if low < 0 else high} must be at least 0 and below {rows:,}, the rows of its "
                "table. Were the examples prepared with another vocabulary?"
            )
