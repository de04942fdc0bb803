"""Damaged and hostile stores: right numbers, or one line and status 2."""

from pathlib import Path
from typing import Any

import pytest

from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import SMALL, Done, in_process
from tests.dlrmctl.damages import Command, answers_to_damages
from tests.dlrmctl.small_tables import SCHEMA, TRAIN, rows_of_a_table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a table with a model of it, and a store of Criteo's text."""
    place = tmp_path_factory.mktemp("damages")
    (place / "train.csv").write_text(rows_of_a_table(600))
    (place / "schema.toml").write_text(SCHEMA)
    (place / "train.txt").write_text(criteo_lines(700))
    for arguments in (
        ["prepare", place / "train.csv", "--schema", place / "schema.toml", "-o", place / "table"],
        ["train", *TRAIN, "--data", place / "table", "--evaluations", "1", "--run-dir", place / "run"],
        ["prepare", "criteo", place / "train.txt", "-o", place / "criteo"],
    ):
        done = in_process(*arguments)
        assert done.status == 0, done.err
    return place


def _show() -> Command:
    def numbers(done: Done) -> Any:
        return {key: value for key, value in done.json().items() if key not in ("path", "store")}

    return Command(lambda path, out: ["data", "show", path, "--json"], numbers)


def _train(small: list[str]) -> Command:
    options = [*small, "--max-steps", "2", "--evaluations", "1", "--json"]
    return Command(
        lambda path, out: ["train", *options, "--data", path, "--run-dir", out],
        lambda done: {key: value for key, value in done.json().items() if key not in ("run", "seconds")},
    )


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_damaged_store_of_a_table_gives_right_numbers_or_one_line(place: Path, tmp_path: Path):
    evaluate = Command(
        lambda path, out: ["evaluate", place / "run", "--data", path, "--json"], lambda done: done.json()["test"]
    )
    commands = {"show": _show(), "train": _train(TRAIN), "evaluate": evaluate}
    answers_to_damages(place / "table", tmp_path, commands, 400, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_damaged_store_of_criteo_gives_right_numbers_or_one_line(place: Path, tmp_path: Path):
    commands = {"show": _show(), "train": _train([*SMALL[2:], "--batch-size", "64"])}
    answers_to_damages(place / "criteo", tmp_path, commands, 150, seed=4)
