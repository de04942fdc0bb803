"""Rows of visits as a user's tables: items that several columns share, lists with weights, weights and groups."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

SCHEMA: dict[str, Any] = {
    "label": "clicked",
    "dense": ["price"],
    "sparse": ["item", "user"],
    "weight": "importance",
    "group": "user",
    "id": ["session", "row"],
}


def visits(rows: int = 2000, *, seed: int = 0, items: int = 60) -> pl.DataFrame:
    """Clicks depend on the item, and on whether it is like those of the history."""
    rng = np.random.default_rng(seed)
    taste = rng.normal(size=items)
    draw = lambda size: np.minimum(rng.zipf(1.5, size) - 1, items - 1)  # noqa: E731
    item, last = draw(rows), draw(rows)
    lengths = rng.integers(0, 6, rows)
    history = [draw(length).tolist() for length in lengths]
    seconds = [rng.gamma(2.0, 10.0, length).astype(np.float32).tolist() for length in lengths]
    logits = taste[item] + 0.5 * taste[last] + np.array([0.3 * sum(taste[h]) for h in history]) - 0.5
    name = lambda number: f"item-{number}"  # noqa: E731
    return pl.DataFrame(
        {
            "clicked": (rng.random(rows) < 1 / (1 + np.exp(-logits))).astype(int),
            "price": rng.gamma(2.0, 20.0, rows).round(2),
            "item": [name(i) for i in item],
            "last_item": [name(i) if i else None for i in last],
            "history": [[name(i) for i in h] for h in history],
            "seconds": seconds,
            "user": [f"u{u}" if u else None for u in rng.integers(0, rows // 12, rows)],
            "importance": rng.choice([0.0, 0.5, 1.0, 3.0], rows).astype(np.float32),
            "session": [f"s{n // 3}" for n in range(rows)],
            "row": list(range(rows)),
        }
    )


def write(frame: pl.DataFrame, path: Path) -> Path:
    """In the format of the name; lists in CSV are joined by "|"."""
    if path.suffix == ".csv":
        lists = [name for name, kind in frame.schema.items() if kind == pl.List]
        joined = [pl.col(name).cast(pl.List(pl.String)).list.join("|") for name in lists]
        frame.with_columns(joined).write_csv(path)
    elif path.suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_parquet(path)
    return path


def write_schema(path: Path, schema: dict[str, Any]) -> Path:
    """As TOML."""
    columns = schema.get("columns", {})
    lines = [f"{key} = {json.dumps(value)}" for key, value in schema.items() if key != "columns"]
    for name, section in columns.items():
        lines += [f"[columns.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


SHARED: dict[str, Any] = {
    "label": "clicked",
    "dense": ["price"],
    "sparse": ["last_item", "user", "item", "history"],
    "columns": {"history": {"max_ids": 6, "table": "item"}, "last_item": {"table": "item"}},
}


WEIGHTED: dict[str, Any] = {
    "label": "clicked",
    "dense": ["price"],
    "sparse": ["item", "history", "recent"],
    "columns": {
        "history": {"max_ids": 4, "truncate": "last", "weights": "seconds", "table": "item"},
        "recent": {"column": "history", "max_ids": 3, "truncate": "first", "pooling": "mean", "table": "item"},
    },
}
