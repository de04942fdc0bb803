"""Finds the data that the settings name, and its tables; does not load torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from dlrmctl.data.schema import RESERVED_ROWS
from dlrmctl.data.synthetic.cardinalities import SIZES
from dlrmctl.errors import UserError
from dlrmctl.settings.config import DataSettings
from dlrmctl.settings.stores import described_in, store_place

if TYPE_CHECKING:
    from dlrmctl.data.store.places import RemotePlace

ENVIRONMENT = "DLRMCTL_DATA"


def data_place(settings: DataSettings) -> "Path | RemotePlace | None":
    """The directory of the prepared store, or its place on another machine; None for generated data.

    Raises:
        UserError: if no store is found.
        DataError: if one on another machine cannot be read.
    """
    if settings.dataset == "synthetic":
        return None
    if settings.path is not None:
        return store_place(settings.path, settings)
    if os.environ.get(ENVIRONMENT):
        return store_place(os.environ[ENVIRONMENT], settings)
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


def table_rows(settings: DataSettings) -> dict[str, int]:
    """The rows of a full table of each sparse feature, by name.

    Raises:
        UserError, DataError: if there is no store, or it is damaged.
    """
    place = data_place(settings)
    if place is None:
        return {f"cat_{number}": ids + RESERVED_ROWS for number, ids in enumerate(SIZES[settings.synthetic_size], 1)}
    from dlrmctl.data.store.manifest import read_manifest

    return {feature.name: feature.rows for feature in read_manifest(described_in(place)).schema.sparse}
