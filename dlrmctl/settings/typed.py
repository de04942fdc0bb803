"""Settings from the command line, whose messages name a store as it was typed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.remote.urls import is_remote
from dlrmctl.settings.config import Config, DataSettings, resolve
from dlrmctl.settings.stores import store_place
from dlrmctl.settings.synonyms import nearest


def resolve_typed(file: Mapping[str, Any], flags: Mapping[str, Any], *, file_name: str = "run.toml") -> Config:
    """Like `resolve`, and checks that there is a store in the directory of --data, if that is among the flags.

    Raises:
        UserError: see `resolve`.
        DataError: if there is no store.
    """
    config = resolve(file, flags, file_name=file_name)
    if "path" in flags:  # the settings have its absolute path
        refuse_missing_store(flags["path"], config.data)
    return config


def refuse_missing_store(path: Path | str, settings: DataSettings | None = None) -> None:
    """Checks that there is a store in this directory, or at this URL.

    Args:
        path: of the store.
        settings: with the cache for a store at a URL.

    Raises:
        DataError: if there is none; the hint names a store beside it whose name is similar.
    """
    from dlrmctl.data.store.manifest import read_manifest

    if is_remote(str(path)):
        store_place(path, settings)
        return
    path = Path(path)
    try:
        read_manifest(path)
    except DataError as problem:
        beside = [] if path.exists() else [found.parent.name for found in path.parent.glob("*/manifest.json")]
        close = nearest(path.name, beside)
        hint = f"did you mean {path.parent / close}?" if close else problem.hint
        raise DataError(problem.message, hint) from None
