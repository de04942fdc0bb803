"""A model that was trained on one format of tables predicts the same from the same rows in every other."""

import json
from pathlib import Path

import polars as pl

from tests.data.formats.test_same_values import NAMES, SCHEMA, messy, write
from tests.dlrmctl.commands import SMALL, in_process


def test_a_model_of_a_csv_file_scores_the_same_rows_in_every_format(tmp_path: Path) -> None:
    schema = "".join(f"{key} = {json.dumps(value)}\n" for key, value in SCHEMA.items())
    (tmp_path / "my.toml").write_text(schema)
    source, store, run = write(messy(), tmp_path / "a.csv"), tmp_path / "store", tmp_path / "run"
    done = in_process("prepare", "--schema", tmp_path / "my.toml", source, "-o", store, "--min-count", "1")
    assert done.status == 0, done.err
    done = in_process("train", *SMALL[2:], "--batch-size", "64", "--data", store, "--run-dir", run)
    assert done.status == 0, done.err
    frame, found = messy(120).with_row_index("row"), []
    for name in NAMES:
        out = tmp_path / f"{name}.out.parquet"
        new = write(frame, tmp_path / f"new-{name}")
        done = in_process("predict", run, new, "-o", out, "--labelled", "--keep", "row", "--json")
        assert done.status == 0, done.err
        assert "none of its values" not in done.err
        predicted = pl.read_parquet(out)
        assert predicted["row"].cast(pl.UInt32).to_list() == list(range(120))
        found.append((predicted["probability"].to_list(), predicted["label"].to_list(), done.json()["metrics"]))
    assert all(other == found[0] for other in found)
    assert len(set(found[0][0])) > 20
