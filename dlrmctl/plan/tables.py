"""Finds the tables to plan: those of data, of a known benchmark, of a list of rows, or of a file such as:

dense = 13

[tables]
user = 40_000_000
tags = { rows = 100_000, max_ids = 20 }
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlrmctl.data.errors import DataError
from dlrmctl.data.schema import RESERVED_ROWS, Schema, SparseFeature
from dlrmctl.data.synthetic.cardinalities import KAGGLE, MLPERF, SIZES, missing_twentieths
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config
from dlrmctl.settings.parse import whole_number
from dlrmctl.settings.setting import coerce
from dlrmctl.settings.synonyms import nearest
from dlrmctl.settings.toml import read_toml

NUM_DENSE = 13  # as in Criteo's data
MOST_ROWS = 2**63 - 1
_KEYS = ("rows", "max_ids")  # of a table in a file
PRESETS = {"mlperf": MLPERF, "kaggle": KAGGLE, "mlperf-dcnv2": MLPERF}
# fmt: off
_MLPERF_IDS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)  # of each example
# fmt: on
PRESET_IDS = {"mlperf-dcnv2": _MLPERF_IDS}
# The model of the benchmark's tables, unless other flags are given.
PRESET_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mlperf": {
        "model": {"bottom_mlp": [512, 256, 128], "top_mlp": [1024, 1024, 512, 256, 1], "interaction": "dot"},
        "embeddings": {"dim": 128},
        "train": {"batch_size": 16384},
    },
    "mlperf-dcnv2": {
        "model": {
            "bottom_mlp": [512, 256, 128],
            "top_mlp": [1024, 1024, 512, 256, 1],
            "interaction": "dcn",
            "cross_layers": 3,
            "cross_rank": 512,
        },
        "embeddings": {"dim": 128},
        "train": {"batch_size": 65536},
    },
    "kaggle": {},
}


def chosen_schema(config: Config, *, preset: str | None, rows: str | None, tables: Path | None) -> tuple[Schema, str]:
    """Returns the tables to plan and their title; by default those of the settings' data.

    Raises:
        UserError, DataError: if they do not exist, or cannot be read.
    """
    if preset is not None:
        return schema_of_rows(list(PRESETS[preset]), PRESET_IDS.get(preset)), f"{preset} tables"
    if rows is not None:
        numbers = rows_of("--rows", rows)
        return schema_of_rows(numbers), f"{len(numbers)} given tables"
    if tables is not None:
        return _schema_of_file(tables), str(tables)
    if config.data.dataset == "synthetic":
        return schema_of_data(config), f"synthetic data, {config.data.synthetic_size}"
    return schema_of_data(config), config.data.path or f"{config.data.dataset} data"


def num_examples(config: Config) -> int:
    """Training examples of the data that the settings name.

    Raises:
        UserError, DataError: if it is not there.
    """
    if config.data.dataset == "synthetic" and config.data.path is None:
        return config.data.synthetic_rows
    from dlrmctl.datasets.open import open_source

    return open_source(config.data, verify=()).num_examples("train")


def schema_of_data(config: Config) -> Schema:
    """Returns the tables of the settings' data; reads only its description.

    Raises:
        UserError, DataError: if it does not exist.
    """
    if config.data.dataset == "synthetic" and config.data.path is None:
        schema = schema_of_rows([ids + RESERVED_ROWS for ids in SIZES[config.data.synthetic_size]])
        gaps = [name for column, name in enumerate(schema.dense) if missing_twentieths(column)]
        return replace(schema, gaps=tuple(gaps))
    from dlrmctl.data.store.store import Store
    from dlrmctl.datasets.place import data_place

    try:
        place = data_place(config.data)
    except UserError as problem:
        others = "without data: --preset " + "|".join(PRESETS) + ", --rows 40M,39060,... or --tables FILE.toml"
        raise UserError(problem.message, f"{others}; with data: --data DIR, or --dataset synthetic") from None
    assert place is not None
    return Store(place).schema


def schema_of_rows(rows: Sequence[int], max_ids: Sequence[int] | None = None) -> Schema:
    """Returns features with these rows, one-hot by default, and as many dense features as Criteo's data."""
    features = enumerate(zip(rows, max_ids or [1] * len(rows), strict=True), start=1)
    sparse = [SparseFeature(f"cat_{number}", count, ids) for number, (count, ids) in features]
    return Schema(tuple(f"int_{number}" for number in range(1, NUM_DENSE + 1)), tuple(sparse))


def rows_of(flag: str, text: str) -> list[int]:
    """Parses numbers such as "40M,39060".

    Raises:
        UserError: if one of them is not a number of rows.
    """
    parts = text.split(",")
    names = [f"{flag}, number {i} of {len(parts)}," if len(parts) > 1 else flag for i in range(1, len(parts) + 1)]
    return [
        _checked_rows(name, whole_number(name, part.strip(), at_least=1))
        for name, part in zip(names, parts, strict=True)
    ]


def _schema_of_file(path: Path) -> Schema:
    """Reads the tables of a file as above.

    Raises:
        UserError: if it cannot be read, or has other content.
    """
    content = read_toml(path)
    for name in content:
        if name not in ("dense", "tables"):
            close = nearest(name, ("dense", "tables"))
            hint = f"did you mean {close!r}?" if close else "a file of tables has `dense = N` and [tables]"
            raise UserError(f"{path}: {name} is neither dense nor tables", hint)
    tables = content.get("tables")
    if not isinstance(tables, dict) or not tables:
        raise UserError(f"{path} has no tables", "a section [tables] with lines such as user = 40_000_000")
    dense = coerce(content.get("dense", NUM_DENSE), int, f"{path}: dense")
    if not 0 <= dense <= 10**6:
        raise UserError(f"{path}: dense = {dense} must be at least 0 and at most a million")
    sparse = [_feature(name, value, f"{path}: tables.{name}") for name, value in tables.items()]
    try:
        return Schema(tuple(f"int_{number}" for number in range(1, dense + 1)), tuple(sparse))
    except DataError as problem:
        raise UserError(f"{path}: {problem}") from None


def _feature(name: str, value: Any, where: str) -> SparseFeature:
    given = value if isinstance(value, dict) else {"rows": value}
    unknown = sorted(set(given) - set(_KEYS))
    if unknown:
        close = nearest(unknown[0], _KEYS)
        hint = f"did you mean {close!r}?" if close else f"a table has {' and '.join(_KEYS)}"
        raise UserError(f"{where} has no key {unknown[0]!r}", hint)
    if "rows" not in given:
        raise UserError(f"{where}.rows is missing", f"{name} = {{ rows = N, max_ids = N }}")
    rows, longest = (coerce(given.get(key, 1), int, f"{where}.{key}") for key in ("rows", "max_ids"))
    _checked_rows(where, rows)
    if not 1 <= longest <= 10**6:
        raise UserError(f"{where}.max_ids = {longest} must be at least 1 and at most a million")
    return SparseFeature(name, rows, longest)


def _checked_rows(where: str, rows: int) -> int:
    if not 1 <= rows <= MOST_ROWS:
        raise UserError(f"{where}: {rows:,} rows must be at least 1 and at most {MOST_ROWS:,}")
    return rows
