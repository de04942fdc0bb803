"""`prepare --extend`: ids of earlier days are kept, and values get rows by their counts over all days."""

import json
import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.store.store import Store
from dlrmctl.settings.toml import read_toml
from tests.dlrmctl.checkpoints import read_tensors
from tests.dlrmctl.commands import in_process

SCHEMA = """label = "y"
dense = ["price"]
sparse = ["user", "words"]
list_separator = ";"
[columns.words]
max_ids = 3
"""
ROWS, MIN_COUNT = 700, 3
TRAIN = 600  # 6/7 of the rows


def _day(path: Path, first: int) -> tuple[Counter[str], Counter[str]]:
    """Writes a table; returns the counts of its training rows by column."""
    draw, counts, lines = random.Random(first), (Counter[str](), Counter[str]()), ["y,price,user,words"]
    for row in range(ROWS):
        user = f"user-{first + int(draw.expovariate(1 / 60))}" if draw.random() < 0.9 else ""
        words = [f"w{first + int(draw.expovariate(1 / 90))}" for _ in range(draw.randint(0, 3))]
        lines.append(f"{draw.randint(0, 1)},{draw.lognormvariate(first / 50, 1):.2f},{user},{';'.join(words)}")
        if row < TRAIN:
            counts[0].update([user] if user else [])
            counts[1].update(words)
    path.write_text("\n".join(lines) + "\n")
    return counts


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Counter[str], Counter[str]]]]:
    """Tables and stores of three days, each extending the one before, and the counts of each."""
    place = tmp_path_factory.mktemp("extend")
    (place / "my.toml").write_text(SCHEMA)
    counts = []
    for number, first in enumerate((0, 40, 100), 1):
        counts.append(_day(place / f"{number}.csv", first))
        more = ["--extend", place / str(number - 1)] if number > 1 else ["--keep-rare", "--min-count", str(MIN_COUNT)]
        table = place / f"{number}.csv"
        done = in_process("prepare", "--schema", place / "my.toml", table, *more, "-o", place / str(number))
        assert done.status == 0, done.err
    return place, counts


def _ids(store: Store, name: str) -> list[str | None]:
    features = store.features
    rows = next(feature.rows for feature in features.schema.sparse if feature.name == name)
    return features.values_of(name, range(2, rows))


def test_values_get_rows_by_their_counts_over_all_days(days):
    place, counts = days
    for column, name in enumerate(("user", "words")):
        known: list[str] = []
        total: Counter[str] = Counter()
        for number, of_day in enumerate(counts, 1):
            total.update(of_day[column])
            store = Store(place / str(number))
            found = _ids(store, name)
            assert found[: len(known)] == known
            added = found[len(known) :]
            assert {*added} == {value for value, count in total.items() if count >= MIN_COUNT} - {*known}
            assert [total[value] for value in added] == sorted((total[value] for value in added), reverse=True)
            known = found
            kept = store.features.counts(name)
            assert kept is not None
            assert kept[2:].tolist() == [total[value] for value in known]
            assert int(kept[1]) == sum(count for value, count in total.items() if value not in known)
        promoted = {value for value in known if max(of_day[column][value] for of_day in counts) < MIN_COUNT}
        assert promoted  # frequent only over several days


def test_statistics_of_the_first_day_are_kept_beside_the_new_ones(days):
    place, _ = days
    first, second, third = (Store(place / str(number)).features for number in (1, 2, 3))
    assert first.dense == second.dense == third.dense
    assert third.own_dense[0].mean != second.own_dense[0].mean != first.dense[0].mean
    assert first.own_dense == ()


@pytest.mark.parametrize(("workers", "most"), [(1, 16), (3, 1 << 20)])
def test_bytes_do_not_depend_on_workers_or_memory(days, tmp_path: Path, workers: int, most: int):
    place, _ = days
    source = TableInput(read_schema(read_toml(place / "my.toml"), "my.toml"), [str(place / "2.csv")])
    options = PrepareOptions(min_count=MIN_COUNT, extend=place / "1", name="2")
    prepare(source, tmp_path / "again", options, workers=workers, part_rows=100, most_in_memory=most)
    files = {path.relative_to(place / "2") for path in (place / "2").rglob("*") if path.is_file()}
    files.remove(Path("raw_sample.arrow"))  # written by the command
    assert files == {path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert [str(f) for f in files if (place / "2" / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []


def test_runs_start_only_from_data_that_was_extended(days, tmp_path: Path):
    place, _ = days
    model = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64", "--epochs", "1"]
    done = in_process("train", "--data", place / "1", "--run-dir", tmp_path / "run", *model, "--evaluations", "1")
    assert done.status == 0, done.err
    more = ["train", "--init-from", tmp_path / "run"]
    done = in_process(*more, "--data", place / "2", "--run-dir", tmp_path / "next")
    assert done.status == 0, done.err
    assert "new rows in its tables" in done.err
    done = in_process("prepare", "--schema", place / "my.toml", place / "2.csv", "-o", tmp_path / "other")
    assert done.status == 0
    done = in_process(*more, "--data", tmp_path / "other", "--run-dir", tmp_path / "last")
    assert done.status == 2
    assert "ids of user mean something else than in the run" in done.err
    assert "--extend STORE" in done.err


def test_vectors_of_values_start_their_rows(days, tmp_path: Path):
    place, _ = days
    features = Store(place / "2").features
    known, new = _ids(Store(place / "1"), "user"), _ids(Store(place / "2"), "user")
    chosen = [known[3], new[-1], "nobody"]
    vectors = [[float(number)] * 8 for number in range(3)]
    frame = pl.DataFrame({"feature": ["user"] * 3, "value": chosen, "vector": vectors})
    frame.write_parquet(tmp_path / "v.parquet")
    model = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--embedding", "full", "--max-steps", "1"]
    still = ["--sparse-lr", "0", "--qr-lr", "0", "--evaluations", "1", "--init-embeddings", tmp_path / "v.parquet"]
    runs = [tmp_path / "one", tmp_path / "two"]
    done = in_process("train", "--data", place / "1", "--run-dir", runs[0], *model, *still)
    assert done.status == 0, done.err
    assert "vectors of 3 values" in done.err
    assert "2 have no row of their own in the data" in done.err
    frame.with_columns(vector=pl.Series([[9.0] * 8] * 3)).write_parquet(tmp_path / "v.parquet")
    done = in_process("train", "--init-from", runs[0], "--data", place / "2", "--run-dir", runs[1], *still)
    assert done.status == 0, done.err
    tables = [read_tensors(run / "checkpoints" / "best")["tables.user/weight"] for run in runs]
    row = new.index(chosen[1]) + 2
    assert tables[0][5].tolist() == tables[1][5].tolist() == [0.0] * 8
    assert tables[1][row].tolist() == [9.0] * 8
    assert features.schema.sparse[0].rows == len(tables[1])
    frame.with_columns(feature=pl.lit("page")).write_parquet(tmp_path / "v.parquet")
    done = in_process("train", "--data", place / "1", "--run-dir", tmp_path / "three", *model, *still)
    assert (done.status, "'page' is not a sparse feature of the data" in done.err) == (2, True), done.err


def test_vectors_may_be_safetensors(days, tmp_path: Path):
    place, _ = days
    known = _ids(Store(place / "1"), "user")
    chosen = [known[3], "nobody", known[5]]
    vectors = {"user": torch.arange(24.0).view(3, 8)}
    model = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--embedding", "full", "--max-steps", "1"]
    still = ["--sparse-lr", "0", "--qr-lr", "0", "--evaluations", "1", "--init-embeddings", tmp_path / "v.safetensors"]
    train = ["train", "--data", place / "1", *model, *still, "--run-dir"]
    save_file(vectors, tmp_path / "v.safetensors", {"user": json.dumps(chosen)})
    done = in_process(*train, tmp_path / "run")
    assert done.status == 0, done.err
    assert "vectors of 3 values" in done.err
    table = read_tensors(tmp_path / "run" / "checkpoints" / "best")["tables.user/weight"]
    assert torch.equal(table[[5, 7]], vectors["user"][[0, 2]])
    for metadata, message in (
        (None, "the values of user are missing"),
        ({"user": "nobody"}, "the metadata entry user is not a JSON list"),
        ({"user": '["a"]'}, "user has vectors of shape 3x8, expected 1x8"),
    ):
        save_file(vectors, tmp_path / "v.safetensors", metadata)
        done = in_process(*train, tmp_path / "other")
        assert (done.status, message in done.err) == (2, True), done.err
    (tmp_path / "v.safetensors").write_bytes(b"nothing")
    done = in_process(*train, tmp_path / "other")
    assert (done.status, "cannot read as safetensors" in done.err) == (2, True), done.err


def test_what_cannot_be_extended_is_one_line(days, tmp_path: Path):
    place, _ = days
    (tmp_path / "less.toml").write_text(SCHEMA.replace('"user", "words"', '"words"'))
    table, target = place / "2.csv", ["-o", tmp_path / "s", "--extend", place / "1"]
    done = in_process("prepare", "--schema", tmp_path / "less.toml", table, *target)
    assert (done.status, "cannot be extended: feature user is missing here" in done.err) == (2, True), done.err
    done = in_process("prepare", "--schema", place / "my.toml", table, *target, "--vocabulary-from", place / "1")
    assert (done.status, "--vocabulary-from and --extend contradict" in done.err) == (2, True), done.err
    made = SCHEMA.replace("[columns.words]", '[columns.user]\ntype = "string"\n[columns.words]')
    (tmp_path / "made.toml").write_text(made)
    done = in_process("prepare", "--schema", tmp_path / "made.toml", table, *target)
    assert (done.status, 'user has type = none there, and type = "string" here' in done.err) == (2, True), done.err
    done = in_process("prepare", "--schema", place / "my.toml", table, *target, "--ids", "hash")
    assert (done.status, "--ids = hash and --extend contradict" in done.err) == (2, True), done.err
