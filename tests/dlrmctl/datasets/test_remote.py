"""Predictions and stores on other machines, which run: S3 and sftp."""

from pathlib import Path

import polars as pl
import pytest

from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, in_process

fsspec = pytest.importorskip("fsspec")
MODEL = [*SMALL[2:], "--batch-size", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a store made of them, and a run on it."""
    directory = tmp_path_factory.mktemp("place")
    (directory / "train.txt").write_text(criteo_lines(1400))
    assert in_process("prepare", "criteo", directory / "train.txt", "-o", directory / "store").status == 0
    done = in_process("train", *MODEL, "--data", directory / "store", "--run-dir", directory / "run")
    assert done.status == 0, done.err
    return directory


@pytest.mark.parametrize("kind", ["s3", "sftp"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predictions_are_written_to_another_machine(
    kind: str, suffix: str, request: pytest.FixtureRequest, place: Path, tmp_path: Path
):
    address = request.getfixturevalue(kind)
    command = ["predict", place / "run", place / "train.txt", "--labelled", "-o"]
    there, here = f"{address}/p-{kind}.{suffix}", tmp_path / f"p.{suffix}"
    assert in_process(*command, here).status == 0
    done = in_process(*command, there)
    assert done.status == 0, done.err
    assert f"wrote {there}: 1,400 predictions" in done.out
    filesystem, path = fsspec.core.url_to_fs(there)
    assert filesystem.cat_file(path) == here.read_bytes()
    assert len(pl.read_csv(here) if suffix == "csv" else pl.read_parquet(here)) == 1400
    again = in_process(*command, there)
    assert (again.status, again.err.strip().splitlines()[-2:]) == (
        2,
        [f"error: {there} already exists", "hint: choose another file, or remove this one"],
    )


def test_predictions_that_cannot_be_written_are_refused_before_rows_are_read(s3: str, place: Path):
    for out, problem in {
        "s3://none/p.csv": "s3://none/p.csv: cannot write: no such directory or bucket",
        f"{s3}/p.txt": "the name must end in .parquet or .csv",
        "https://example.org/p.csv": "web servers are only read from",
    }.items():
        done = in_process("predict", place / "run", place / "no-rows.txt", "-o", out)
        assert done.status == 2
        assert problem in done.err
