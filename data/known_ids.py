"""A source as a model of earlier data sees it: ids that were added since are rare values."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dlrmctl.data.features.extension import rows_of_others
from dlrmctl.data.features.space import FeatureSpace
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW, Schema
from dlrmctl.data.source import Bayes, Block, Expecting, Source


class KnownIds:
    """A source whose ids are those of an earlier feature space.

    Args:
        source: the source.
        features: the earlier feature space, which that of the source extends; see `features.extension`.
    """

    def __init__(self, source: Source, features: FeatureSpace) -> None:
        self._source, self._features = source, features
        before = {feature.name: feature.rows for feature in features.schema.sparse}
        sparse = tuple(replace(feature, rows=before[feature.name]) for feature in source.schema.sparse)
        self._schema: Schema = replace(source.schema, sparse=sparse)
        schemes = {column.name: column.scheme for column in features.columns}
        reused = rows_of_others(source.features, features)
        self._reused = [reused.get(feature.name) for feature in sparse]
        self._others = [RARE_ROW if schemes.get(f.name) == "vocabulary" else MISSING_ROW for f in sparse]

    @property
    def schema(self) -> Schema:
        return self._schema

    @property
    def block_rows(self) -> int:
        return self._source.block_rows

    @property
    def features(self) -> FeatureSpace:
        return replace(self._features, schema=self._schema)

    def num_examples(self, split: str) -> int:
        """The number of examples of the split."""
        return self._source.num_examples(split)

    def read_block(self, split: str, index: int) -> Block:
        """One block; safe to call from several threads."""
        block = self._source.read_block(split, index)
        known = zip(block.ids_F, self._schema.sparse, self._others, self._reused, strict=True)
        ids_F = []
        for ids, feature, other, reused in known:
            is_known = ids < feature.rows
            if reused is not None:
                is_known &= ~np.isin(ids, reused)
            ids_F.append(np.where(is_known, ids, ids.dtype.type(other)))
        return replace(block, ids_F=ids_F)

    def expect(self, split: str, indices: Sequence[int]) -> None:
        """See `Expecting`."""
        if isinstance(self._source, Expecting):
            self._source.expect(split, indices)

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return self._source.fingerprint()

    def vocabulary_fingerprint(self) -> str:
        """See `Source.vocabulary_fingerprint`."""
        return self._features.vocabulary_fingerprint()

    def bayes(self, split: str) -> Bayes | None:
        """See `Source.bayes`."""
        return self._source.bayes(split)
