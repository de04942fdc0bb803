"""Opens compressed tables as TorchRec's own collections: one to go on training, one to serve from.

    bags = training_bags(read_tables(Path("small")))     # EmbeddingBagCollection of float32
    bags = serving_bags(read_tables(Path("small")))      # torchrec.quant.EmbeddingBagCollection of the stored bytes
    bags(kjt)                                            # ids by the names of the tables -> pooled rows

Both are for tables whose rows are sums of stored rows: rows of any bits, hashed ones, sums of codes, QR with "add", and
heads with such tails. Others are read and trained by `composed.compose`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from embeddings.compression.additive import AdditiveBags, Block, keyed_blocks
from embeddings.compression.artifact import Artifact
from embeddings.compression.quantize import INTEGER_BITS, SCALE_BIAS_BYTES, padded_dim
from embeddings.compression.rules import Compressed

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


def _blocks(tables: Mapping[str, Compressed]) -> dict[str, Block]:
    return {key: block for name, table in tables.items() for key, block in keyed_blocks(name, table).items()}


def _config(key: str, block: Block, bits: int) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(
        name=key,
        num_embeddings=block.rows.num_rows,
        embedding_dim=block.rows.dim,
        feature_names=[key],
        pooling=PoolingType.SUM,
        data_type=_TYPES[bits],
    )


def _stored(block: Block) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The bytes of the codes, and of scale and bias; of plain floats their bytes."""
    values = block.rows.values
    if block.rows.bits not in INTEGER_BITS:
        return values.view(torch.uint8), None
    return values[:, :-SCALE_BIAS_BYTES], values[:, -SCALE_BIAS_BYTES:]
