"""A source in memory whose rows encode their number, for tests of readers."""

import numpy as np

from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import Schema, SparseFeature
from dlrmctl.data.source import Block


class Counting:
    """Example n has dense (n, -n), ids (n % 7, 2**24 + n) and label n % 2; with lengths, a third list 0..n % 3."""

    def __init__(self, num_examples: int, block_rows: int = 10, *, multi_hot: bool = False) -> None:
        self.count, self.block_rows, self.multi_hot = num_examples, block_rows, multi_hot
        sparse = (SparseFeature("small", 7), SparseFeature("large", 2**25))
        self.schema = Schema(("up", "down"), (*sparse, SparseFeature("list", 3, 3)) if multi_hot else sparse)
        self.features = FeatureSpace(self.schema, ids="counting")

    def num_examples(self, split: str) -> int:
        return self.count

    def read_block(self, split: str, index: int) -> Block:
        n = np.arange(index * self.block_rows, min((index + 1) * self.block_rows, self.count))
        dense = np.stack([n, -n]).astype(np.float32)
        ids = [(n % 7).astype(np.uint8), (2**24 + n).astype(np.uint32)]
        if not self.multi_hot:
            return Block(dense, ids, n % 2)
        lists = [np.arange(k % 3) for k in n]  # some are empty
        lengths = np.stack([np.ones(len(n)), np.ones(len(n)), n % 3]).astype(np.int32)
        return Block(dense, [*ids, np.concatenate(lists)], n % 2, lengths)

    def fingerprint(self) -> str:
        return f"counting-{self.count}"

    def vocabulary_fingerprint(self) -> str:
        return self.features.vocabulary_fingerprint()

    def bayes(self, split: str) -> None:
        return None
