"""A bundle of a model with every kind of column."""

from pathlib import Path

import pytest

from tests.dlrmctl.commands import in_process
from tests.dlrmctl.serving.rows import SCHEMA, write_rows
from tests.dlrmctl.small_tables import TRAIN


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with my.toml, rows.csv, a store of them, a run on it, and its bundle model.dlrm."""
    directory = tmp_path_factory.mktemp("serving")
    (directory / "my.toml").write_text(SCHEMA)
    write_rows(directory / "rows.csv", 1400)
    for command in (
        ("prepare", "--schema", directory / "my.toml", directory / "rows.csv", "-o", directory / "store"),
        ("train", *TRAIN, "--data", directory / "store", "--run-dir", directory / "run", "--epochs", "1"),
        ("export", directory / "run", "-o", directory / "model.dlrm"),
    ):
        done = in_process(*command)
        assert done.status == 0, done.err
    return directory
