"""Opens the data that the settings name."""

import os
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from dlrmctl.data.reader import Reader
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config, DataSettings

ENVIRONMENT = "DLRMCTL_DATA"


def data_directory(settings: DataSettings) -> Path | None:
    """The directory of the prepared store; None for generated data.

    Raises:
        UserError: if no store is found.
    """
    if settings.dataset == "synthetic":
        return None
    if settings.path is not None:
        return Path(settings.path)
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    cached = Path(platformdirs.user_cache_dir("dlrmctl")) / settings.dataset
    if cached.is_dir():
        return cached
    raise UserError(
        f"no prepared {settings.dataset} data: --data is not given, ${ENVIRONMENT} is not set, {cached} does not exist",
        "prepare Criteo's files (Kaggle display advertising challenge, or Criteo 1TB click logs, both from "
        "ailab.criteo.com) with "
        f"`mkdir -p {cached.parent}; dlrmctl prepare criteo train.txt -o {cached}`; or name a store with --data DIR; "
        "or train on generated data with --dataset synthetic",
    )


def open_source(settings: DataSettings, *, verify: Sequence[str] = ("validation", "test")) -> Source:
    """Opens the data that the settings name.

    Args:
        verify: splits whose checksums are verified now. A reader verifies what it reads; but a damaged test split
            should be found before the training, not after it.

    Raises:
        UserError, DataError: if the data is missing or unusable.
    """
    directory = data_directory(settings)
    if directory is None:
        held_out = max(50_000, settings.synthetic_rows // 20)
        return Synthetic(
            settings.synthetic_seed,
            settings.synthetic_rows,
            held_out,
            held_out,
            cardinalities=SIZES[settings.synthetic_size],
        )
    store = Store(directory)
    for split in verify:
        store.verify(split)
    return store


def open_reader(config: Config, source: Source, split: str, ranks: Ranks, *, training: bool) -> Reader:
    """Reads this rank's batches of a split: shuffled full batches for training, otherwise all examples in order."""
    return Reader(
        source,
        split,
        batch_size=config.train.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=config.train.seed,
        shuffle=training,
        drop_last=training,
        pin_memory=ranks.device.type == "cuda",
    )
