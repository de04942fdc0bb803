"""The options of a preparation."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.data.splits import BY_ORDER, Split
from dlrmctl.data.store.layout import MOST_BLOCK_ROWS
from dlrmctl.data.store.manifest import check_name
from dlrmctl.data.store.writer import STORE_BLOCK_ROWS

_BESIDE = ("name", "raw_sample")  # do not affect the examples
_NEWER = ("extend", "keep_rare", "forget")  # so that work of an earlier version can be continued


@dataclass(frozen=True)
class PrepareOptions:
    """The options of a preparation.

    Attributes:
        min_count: values with a smaller count in the training examples share the rare row. The default of 2 gives that
            row examples to learn from.
        hash_rows: rows of every table, for hashing without a vocabulary; None makes vocabularies.
        split: which rows train, validate and test.
        max_bad_rows: the most bad lines; None allows 100 and 1 % of the lines read so far.
        block_rows: examples of a block of the store.
        max_rows_per_table: the most rows of a table, including reserved ones; less frequent values are rare. None sets
            no limit.
        vocabulary_from: directory of a store whose encoders are used, so that ids mean the same in both; unknown values
            are rare. `min_count` is ignored then.
        extend: directory of a store whose ids are kept; new values get rows after them. Counts are those of its
            training examples and of the new ones together.
        keep_rare: whether to keep the values without a row, and their counts, for stores that extend this one; always
            with `extend`.
        forget: with `extend`, the number of stores, this one included, after which the row of a value that none of them
            has in its training rows is free for a new value; None keeps all rows.
        limit: the most good rows; None takes all.
        sample_negatives: probability that a training example labelled 0 is kept; the splits are cut before, and
            validation and test keep everything. Vocabularies count only the kept examples: other values could not be
            learned.
        seed: seed of the sample.
        raw_sample: number of raw validation rows that the store keeps, to check exported models; at most.
        name: name of the data for the manifest; None lets the reader choose, see `Manifest.called`.
    """

    min_count: int = 2
    hash_rows: int | None = None
    split: Split = BY_ORDER
    max_bad_rows: int | None = None
    block_rows: int = STORE_BLOCK_ROWS
    max_rows_per_table: int | None = None
    vocabulary_from: Path | str | None = None
    extend: Path | str | None = None
    keep_rare: bool = False
    forget: int | None = None
    limit: int | None = None
    sample_negatives: float = 1.0
    seed: int = 0
    raw_sample: int = 0
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        if self.min_count < 1:
            raise DataError(f"a minimum count of {self.min_count} must be at least 1")
        if self.hash_rows is not None and not 2 <= self.hash_rows <= 1 << 32:
            raise DataError(f"{self.hash_rows} rows for hashed values must be at least 2 and at most 2**32")
        if self.max_bad_rows is not None and self.max_bad_rows < 0:
            raise DataError(f"a limit of {self.max_bad_rows} rejected lines must be at least 0")
        if not 1 <= self.block_rows <= MOST_BLOCK_ROWS:
            raise DataError(f"blocks of {self.block_rows} examples must have at least 1, and at most {MOST_BLOCK_ROWS}")
        if self.max_rows_per_table is not None and self.max_rows_per_table < RESERVED_ROWS:
            raise DataError(f"{self.max_rows_per_table} rows per table must be at least {RESERVED_ROWS}")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"a limit of {self.limit} rows must be at least 1")
        if self.limit is not None and self.split.by == "files":
            raise DataError(f"a limit of {self.limit} rows and files of each split contradict")
        if not 0 < self.sample_negatives <= 1:
            raise DataError(f"a share of {self.sample_negatives} of the negatives must be above 0 and at most 1")
        if not 0 <= self.seed < 1 << 64:
            raise DataError(f"a seed of {self.seed} must be at least 0 and below 2**64")
        if self.hash_rows is not None and (self.vocabulary_from is not None or self.max_rows_per_table is not None):
            other = "a vocabulary" if self.vocabulary_from is not None else "a limit of rows per table"
            raise DataError(f"hashed values cannot have {other}", "omit one of the two")
        if self.vocabulary_from is not None and self.max_rows_per_table is not None:
            raise DataError("a vocabulary of another store cannot have a limit of rows per table")
        if self.forget is not None and not (self.extend is not None and 1 <= self.forget < 1 << 16):
            raise DataError(
                f"values are forgotten after {self.forget} days, which must be at least 1 and below 65,536, and need a "
                "store to extend"
            )
        if self.extend is not None and (self.vocabulary_from is not None or self.hash_rows is not None):
            other = "fixed to those of another one" if self.vocabulary_from is not None else "hashed anew"
            raise DataError(f"ids that extend those of a store cannot be {other}", "omit one of the two")

    @property
    def counts_values(self) -> bool:
        """Whether vocabularies are made."""
        return self.hash_rows is None and self.vocabulary_from is None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON of all options that affect the examples, so not the name or the sample."""
        values = {**asdict(self), "split": self.split.to_dict()}
        for name in ("vocabulary_from", "extend"):
            values[name] = None if values[name] is None else str(Path(values[name]).resolve())
        return {name: value for name, value in values.items() if name not in _BESIDE and (name not in _NEWER or value)}
