"""Where a named store is: a directory of this machine, or a place on another one with the cache of the settings."""

from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from dlrmctl.data.remote.urls import is_remote
from dlrmctl.settings.amounts import size_of
from dlrmctl.settings.config import DataSettings

if TYPE_CHECKING:
    from dlrmctl.data.store.places import RemotePlace

# By URL and cache; held so that no other process removes their copies while this one lives.
_held: "dict[tuple[str, Path, int], list[RemotePlace]]" = {}


def store_place(name: Path | str, settings: DataSettings | None = None) -> "Path | RemotePlace":
    """The directory of a store, or its place on another machine, with the cache of the settings.

    A store that this process has opened, and that has not changed since, is not read again.

    Raises:
        DataError: if one on another machine cannot be read.
    """
    if not is_remote(str(name)):
        return Path(name)
    from dlrmctl.data.remote.cache import RangeCache
    from dlrmctl.data.store.places import RemotePlace

    settings = settings or DataSettings()
    cache = Path(settings.cache_dir or Path(platformdirs.user_cache_dir("dlrmctl")) / "remote")
    most_bytes = size_of("cache_size", settings.cache_size)
    places = _held.setdefault((str(name), cache, most_bytes), [])
    if not places or not places[-1].is_current():
        places.append(RemotePlace(str(name), RangeCache(cache, most_bytes)))
    return places[-1]


def described_in(place: "Path | RemotePlace") -> Path:
    """The directory with the files of a store that are not blocks."""
    return place if isinstance(place, Path) else place.path
