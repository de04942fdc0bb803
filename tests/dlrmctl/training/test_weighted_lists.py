"""Commands on data with weighted lists and lists that are pooled by their mean."""

from pathlib import Path

import numpy as np
import polars as pl

import dlrmctl
from dlrmctl.serving import Scorer
from tests.data.visits import WEIGHTED, visits, write, write_schema
from tests.dlrmctl.commands import in_process

MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "128", "--epochs", "1"]
QR = ["--embedding", "qr", "--collisions", "3", "--qr-threshold", "10"]


def _done(*arguments: str | Path) -> str:
    done = in_process(*arguments)
    assert done.status == 0, done.err
    return done.out


def test_every_command_takes_weighted_lists(tmp_path: Path):
    schema, table = write_schema(tmp_path / "my.toml", WEIGHTED), write(visits(), tmp_path / "a.csv")
    _done("prepare", "--schema", schema, table, "-o", tmp_path / "data")
    for name, more in (("full", []), ("qr", QR)):
        _done("train", "--data", tmp_path / "data", *MODEL, *more, "--run-dir", tmp_path / name)
    _done("evaluate", tmp_path / "qr")
    _done("predict", tmp_path / "full", table, "-o", tmp_path / "1.parquet")
    # The same lists as another file have the same scores, and other weights have others.
    arrow = write(visits(), tmp_path / "b.parquet")
    _done("predict", tmp_path / "full", arrow, "-o", tmp_path / "2.parquet")
    doubled = visits().with_columns(pl.col("seconds").list.eval(pl.element() * 2))
    _done("predict", tmp_path / "full", write(doubled, tmp_path / "c.parquet"), "-o", tmp_path / "3.parquet")
    first, same, other = (pl.read_parquet(tmp_path / f"{n}.parquet")["probability"].to_numpy() for n in (1, 2, 3))
    assert np.array_equal(first, same)
    some = np.array([bool(names) for names in visits()["history"].to_list()])
    assert (np.abs(first - other) > 0)[some].mean() > 0.9
    assert np.array_equal(first[~some], other[~some])
    model = dlrmctl.load(tmp_path / "full")
    rows = visits().select("price", "item", "history", "seconds")
    for form in (rows[:50], rows[:50].to_dicts()):
        assert np.allclose(model.predict(form), first[:50], rtol=0, atol=1e-6)
    history, item = (model.embedding(name, ["item-1", "item-2"]) for name in ("history", "item"))
    assert np.array_equal(history, item)  # of one table
    assert len(model.nearest("history", "item-1", k=3)) == 3
    _done("compress-embeddings", tmp_path / "qr", "-o", tmp_path / "small", "--target-ratio", "2x")
    _done("evaluate", tmp_path / "small")
    given = visits().select("price", "item", "history", "seconds").to_dicts()
    for name in ("full", "small"):  # `export` compares the graph, and the logits of raw rows, with the model's
        _done("export", tmp_path / name, "-o", tmp_path / f"{name}.dlrm")
    _done("export", tmp_path / "full", "-o", tmp_path / "full.pt2")
    # float32 probabilities of moderate logits.
    assert np.allclose(Scorer(tmp_path / "full.dlrm").score(given), first, rtol=0, atol=3e-7)
