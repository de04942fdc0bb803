"""Where a named store is: a directory of this machine, or a place on another one with the cache of the settings."""

from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from dlrmctl.data.remote.urls import is_remote
from dlrmctl.settings.amounts import size_of
from dlrmctl.settings.config import DataSettings

if TYPE_CHECKING:
    from dlrmctl.data.store.places import RemotePlace

_held: "list[RemotePlace]" = []  # so that no other process removes their copies while this one lives


def store_place(name: Path | str, settings: DataSettings | None = None) -> "Path | RemotePlace":
    """The directory of a store, or its place on another machine, with the cache of the settings.

    Raises:
        DataError: if one on another machine cannot be read.
    """
    if not is_remote(str(name)):
        return Path(name)
    from dlrmctl.data.remote.cache import RangeCache
    from dlrmctl.data.store.places import RemotePlace

    settings = settings or DataSettings()
    cache = Path(settings.cache_dir or Path(platformdirs.user_cache_dir("dlrmctl")) / "remote")
    place = RemotePlace(str(name), RangeCache(cache, size_of("cache_size", settings.cache_size)))
    _held.append(place)
    return place


def described_in(place: "Path | RemotePlace") -> Path:
    """The directory with the files of a store that are not blocks."""
    return place if isinstance(place, Path) else place.path
