"""Opens the data that the settings name."""

from collections.abc import Sequence
from functools import lru_cache

from dlrmctl.data.preparation.report import PrepareReport
from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.datasets.place import data_place
from dlrmctl.embeddings.ids import IdCheck
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config, DataSettings


def open_source(
    settings: DataSettings, *, verify: Sequence[str] = ("validation", "test"), ranks: Ranks | None = None
) -> Source:
    """Opens the data that the settings name.

    Args:
        verify: splits whose checksums are verified now. A reader verifies what it reads; but a damaged test split
            should be found before the training, not after it.
        ranks: those that share the verification, each of the rows that it will score. Every rank must call it then.

    Raises:
        UserError, DataError: if the data is missing or unusable.
    """
    place = data_place(settings)
    if place is None:
        return _generated(settings.synthetic_seed, settings.synthetic_rows, settings.synthetic_size)
    store = Store(place)
    rank, world_size = (ranks.rank, ranks.world_size) if ranks else (0, 1)

    def check() -> None:
        for split in verify:
            store.verify(split, rank=rank, world_size=world_size)

    if ranks and verify:
        ranks.from_all(check)
    else:
        check()
    return store


@lru_cache(maxsize=1)  # the runs of a search, or of several seeds, train on the same data
def _generated(seed: int, rows: int, size: str) -> Synthetic:
    held_out = max(rows // 20, min(rows, 50_000))  # no more than are trained on
    return Synthetic(seed, rows, held_out, held_out, cardinalities=SIZES[size])


def bytes_read(source: Source, ranks: Ranks) -> dict[str, list[int]] | None:
    """The bytes of blocks that each rank read of each split; None if the data is generated. Every rank must call it."""
    if not isinstance(source, Store):
        return None
    of_ranks = ranks.gather(source.bytes_read)
    return {split: [of_rank[split] for of_rank in of_ranks] for split in source.bytes_read}


def open_reader(config: Config, source: Source, split: str, ranks: Ranks, *, training: bool) -> Reader:
    """Reads this rank's batches of a split: shuffled full batches for training, otherwise all examples.

    Without shuffling, each rank has consecutive examples, in order: rank 0 the first ones.

    A model on a GPU cannot check ids without a wait, so the reader does.
    """
    on_gpu = ranks.device.type == "cuda"
    return Reader(
        source,
        split,
        batch_size=config.train.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.train.seed,
        shuffle=training,
        drop_last=training,
        pin_memory=on_gpu,
        check=IdCheck(source.schema.sparse) if on_gpu else None,
        lanes=None if training else ranks.world_size,
    )


def refuse_equal_labels(source: Source) -> None:
    """Refuses to train on a prepared store whose training labels are all the same.

    Raises:
        UserError: naming the label column of a table.
    """
    if isinstance(source, Store) and (same := _label_of_all(source, "train")) is not None:
        made = source.manifest.preparation
        schema = made.table_schema if made else None
        labels = f"{schema.label!r} and label_positive in the schema" if schema else "of labels"
        raise UserError(f"all {same}", f"check the column {labels}, and prepare the data again")


def refuse_equal_validation_labels(source: Source, why: str, hint: str) -> None:
    """Refuses to choose between models on a validation split of a prepared store whose labels are all the same.

    Args:
        why: it has to be refused, such as "no penalty can be chosen on them".

    Raises:
        UserError: with the hint.
    """
    if isinstance(source, Store) and (same := _label_of_all(source, "validation")) is not None:
        raise UserError(f"all {same}, so {why}", hint)


def _label_of_all(store: Store, split: str) -> str | None:
    """Which label all rows of a split have, such as "60 training labels in STORE are 0"; None if they differ."""
    if store.manifest.preparation is None or not (number := store.num_examples(split)):
        return None
    found = PrepareReport.from_dict(store.manifest.preparation.report).splits.get(split)
    if found is None or found.label_rate not in (0, 1):
        return None
    return f"{number:,} {'training' if split == 'train' else split} labels in {store.path} are {found.label_rate:.0f}"
