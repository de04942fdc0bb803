"""A damaged export: the probabilities of the undamaged one, or one line and status 2."""

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch

from dlrmctl.export import check
from tests.dlrmctl.commands import Done, in_process
from tests.dlrmctl.damages import Command, answers_to_damages
from tests.dlrmctl.small_tables import SCHEMA, TRAIN, rows_of_a_table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a model with lists, and rows to score."""
    place = tmp_path_factory.mktemp("damages")
    (place / "train.csv").write_text(rows_of_a_table(600))
    (place / "schema.toml").write_text(SCHEMA)
    for arguments in (
        ["prepare", place / "train.csv", "--schema", place / "schema.toml", "-o", place / "store"],
        ["train", *TRAIN, "--data", place / "store", "--evaluations", "1", "--run-dir", place / "run"],
        ["export", place / "run", "-o", place / "model.pt2"],
    ):
        done = in_process(*arguments)
        assert done.status == 0, done.err
    lists = {"tags": torch.tensor([[2, 3, -1]] * 4)}
    rows = {"dense": torch.zeros(4, 2), "ids": torch.ones(4, 2, dtype=torch.int64), "lists": lists, "weights": {}}
    torch.save(rows, place / "rows")
    return place


def _score(model: Path, rows: Path, scores: Path) -> Done:
    with redirect_stderr(io.StringIO()) as err:
        status = check.main(str(model), str(rows), str(scores))
    probabilities = torch.load(scores, weights_only=True).tolist() if status == 0 else ""
    return Done(status, str(probabilities), f"error: {err.getvalue()}" if status else "")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_damaged_export_gives_the_same_probabilities_or_one_line(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "FOREIGN", ())  # this process has them all

    def numbers(done: Done) -> Any:
        return done.out

    commands = {"score": Command(lambda path, out: [path, place / "rows", out], numbers, run=_score)}
    answers_to_damages(place / "model.pt2", tmp_path, commands, 250, seed=5, least_right=0)
