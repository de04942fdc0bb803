"""Preparing data from Python."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrmctl.api.frames import Frame, is_frame, to_frame
from dlrmctl.data.errors import DataError
from dlrmctl.data.files import check_scratch, io_errors
from dlrmctl.datasets.prepare import Prepared
from dlrmctl.datasets.prepare import prepare as run_preparation
from dlrmctl.datasets.request import read_request
from dlrmctl.errors import UserError

Paths = str | Path | Sequence[str | Path]


def prepare(
    sources: Paths | Frame | None = None,
    out: str | Path | None = None,
    *,
    schema: str | Path | Mapping[str, Any] | None = None,
    format: str | None = None,
    name: str | None = None,
    ids: str | None = None,
    min_count: int | None = None,
    max_rows_per_table: int | None = None,
    vocabulary_from: str | Path | None = None,
    extend: str | Path | None = None,
    keep_rare: bool = False,
    forget: int | None = None,
    hash_rows: int | None = None,
    split: str | None = None,
    fractions: Sequence[float] | None = None,
    until: Sequence[str] | None = None,
    train: Paths | None = None,
    validation: Paths | None = None,
    test: Paths | None = None,
    limit: int | None = None,
    sample_negatives: float | None = None,
    seed: int | None = None,
    max_bad_rows: int | None = None,
    raw_sample: bool = True,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Prepared:
    """Prepares raw data for training, as `dlrmctl prepare` does; its help describes the options.

    Args:
        sources: files, patterns and ranges, oldest first; or a frame with the columns of the schema.
        out: directory of the new store.
        schema: describes the columns of tables: a TOML file, or its content as a dictionary.
        format: "criteo" or "npy", for files without a schema.

    Returns:
        The directory of the store, and the report of its preparation.

    Raises:
        UserError, DataError: for a mistake that you can fix, with its hint.
    """
    if out is None:
        raise UserError("prepare needs a directory for the store", "prepare(sources, 'clicks', schema=...)")
    given: dict[str, Any] = {
        "schema": Path(schema) if isinstance(schema, str) else schema,
        "ids": ids,
        "min_count": _text(min_count),
        "max_rows_per_table": _text(max_rows_per_table),
        "vocabulary_from": _path(vocabulary_from),
        "extend": _path(extend),
        "keep_rare": keep_rare or None,
        "forget": _text(forget),
        "hash_rows": _text(hash_rows),
        "split": split,
        "fractions": None if fractions is None else ",".join(map(str, fractions)),
        "until": None if until is None else ",".join(map(str, until)),
        "train": _paths(train) or None,
        "validation": _paths(validation) or None,
        "test": _paths(test) or None,
        "limit": _text(limit),
        "sample_negatives": _text(sample_negatives),
        "seed": _text(seed),
        "max_bad_rows": _text(max_bad_rows),
        "raw_sample": raw_sample,
        "workers": _text(workers),
        "scheduler": scheduler,
        "name": name,
    }
    check_scratch()
    if sources is None or not is_frame(sources):
        words = [*([] if format is None else [format]), *_paths(sources)]
        return run_preparation(read_request(words, given), out)
    if schema is None:
        raise UserError("a frame needs a schema of its columns", "schema='clicks.toml', or a dictionary")
    with tempfile.TemporaryDirectory(prefix="dlrmctl-") as place:
        file = Path(place) / "frame.parquet"
        with io_errors(file, "write"):
            to_frame(sources).write_parquet(file)
        try:
            return run_preparation(read_request([str(file)], given), out)
        except DataError as error:
            raise DataError(error.message.replace(str(file), "the frame"), error.hint) from None


def _text(value: float | None) -> str | None:
    return None if value is None else str(value)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _paths(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(value)] if isinstance(value, str | Path) else [str(one) for one in value]
