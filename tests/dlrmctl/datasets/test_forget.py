"""`prepare --extend --forget`: rows of values that no longer occur belong to new ones, and start anew."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.known_ids import KnownIds
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.store.store import Store
from dlrmctl.settings.toml import read_toml
from tests.dlrmctl.checkpoints import read_tensors
from tests.dlrmctl.commands import in_process

SCHEMA = 'label = "y"\nsparse = ["user", "item"]\n[columns.item]\ntable = "user"\n'
MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64", "--epochs", "1"]
DAYS = {"1": [*range(40)], "2": [*range(20), *range(40, 60)], "3": [*range(10), *range(60, 90)]}


def _done(*arguments: str | Path) -> str:
    done = in_process(*arguments)
    assert done.status == 0, done.err
    return done.err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of three days; values are forgotten after two of them, on the third day."""
    place = tmp_path_factory.mktemp("forget")
    (place / "my.toml").write_text(SCHEMA)
    for day, users in DAYS.items():
        lines = [f"{n % 3 // 2},u{users[n % len(users)]},u{users[n * 7 % len(users)]}" for n in range(420)]
        (place / f"{day}.csv").write_text("\n".join(["y,user,item", *lines]) + "\n")
        more = ["--extend", place / str(int(day) - 1), "--forget", "2"] if day != "1" else ["--keep-rare"]
        _done("prepare", "--schema", place / "my.toml", place / f"{day}.csv", "-o", place / day, *more)
    return place


def _values(store: Store, name: str = "user") -> list[str | None]:
    return store.features.values_of(name, range(2, store.schema.sparse[0].rows))


def test_new_values_take_the_rows_of_forgotten_ones_first(place: Path):
    one, two, three = (Store(place / day) for day in DAYS)
    first, second, third = (_values(store) for store in (one, two, three))
    assert second[: len(first)] == first  # nobody is forgotten after one day
    kept = {f"u{n}" for n in (*range(20), *range(40, 60))}  # seen on the second or the third day
    stale = [place for place, name in enumerate(second) if name not in kept]
    assert [name for n, name in enumerate(third[: len(second)]) if n not in stale] == [
        name for n, name in enumerate(second) if n not in stale
    ]
    assert len(stale) == 20
    new = {f"u{n}" for n in range(60, 90)}
    assert {third[n] for n in stale} < new
    assert set(third) == kept | new
    assert len(third) == len(second) + 10
    assert _values(three, "item") == third
    counts = three.features.counts("user")
    assert counts is not None
    rows = Counter[str]()
    for index in range(-(-three.num_examples("train") // three.block_rows)):
        for ids in three.read_block("train", index).ids_F:
            rows.update(str(third[i - 2]) for i in ids.tolist())
    assert {name: int(counts[2 + third.index(name)]) for name in new} == {name: rows[name] for name in new}


def test_rows_of_new_values_start_anew(place: Path):
    _done("train", "--data", place / "1", *MODEL, "--embedding", "full", "--run-dir", place / "first")
    _done("train", "--init-from", place / "first", "--data", place / "2", "--run-dir", place / "run")
    still = ["--sparse-lr", "0", "--wide-lr", "0", "--max-steps", "1", "--evaluations", "1"]
    told = _done("train", "--init-from", place / "run", "--data", place / "3", *still, "--run-dir", place / "next")
    assert "20 rows of new values in place of forgotten ones" in told
    fresh = ["--embedding", "full", *still, "--run-dir", place / "fresh"]
    _done("train", "--data", place / "3", *MODEL, *fresh)
    before, after, initial = (read_tensors(place / r / "checkpoints" / "best") for r in ("run", "next", "fresh"))
    first, second, third = (_values(Store(place / day)) for day in DAYS)
    same = torch.tensor([0, 1, *(n + 2 for n, name in enumerate(second) if third[n] == name)])
    other = torch.tensor([n + 2 for n, name in enumerate(second) if third[n] != name])
    for name in ("tables.user/weight", "wide.user/weight", "wide.item/weight"):
        assert torch.equal(after[name][same], before[name][same]), name
        assert not torch.equal(after[name][other], before[name][other]), name
    assert not after["wide.user/weight"][other].any()
    # The scale of initial values is that of the first day's rows.
    scale = (len(third) + 2) ** 0.5 / (len(first) + 2) ** 0.5
    assert torch.allclose(after["tables.user/weight"][other], initial["tables.user/weight"][other] * scale, rtol=1e-4)
    done = in_process("evaluate", place / "run", "--data", place / "3")
    assert done.status == 0, done.err


def test_an_earlier_model_sees_reused_rows_as_rare_values(place: Path):
    one, three = Store(place / "1"), Store(place / "3")
    known, first, third = KnownIds(three, one.features), _values(one), _values(three)
    for now, then in zip(three.read_block("train", 0).ids_F, known.read_block("train", 0).ids_F, strict=True):
        names = [third[row - 2] if row >= 2 else None for row in now.tolist()]
        assert then.tolist() == [2 + first.index(name) if name in first else 1 for name in names]


def test_forget_needs_a_store_to_extend(place: Path):
    table = ["--schema", place / "my.toml", place / "1.csv", "-o", place / "x"]
    done = in_process("prepare", *table, "--forget", "2")
    assert (done.status, "--forget needs --extend" in done.err) == (2, True), done.err
    done = in_process("prepare", *table, "--extend", place / "1", "--forget", "0")
    assert (done.status, "--forget" in done.err) == (2, True), done.err


def test_bytes_do_not_depend_on_workers_or_memory(place: Path, tmp_path: Path):
    source = TableInput(read_schema(read_toml(place / "my.toml"), "my.toml"), [str(place / "3.csv")])
    options = PrepareOptions(extend=place / "2", forget=2, name="3")
    prepare(source, tmp_path / "again", options, workers=2, part_rows=100, most_in_memory=16)
    files = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert any(file.suffix == ".reused" for file in files)
    assert [str(f) for f in files if (place / "3" / f).read_bytes() != (tmp_path / "again" / f).read_bytes()] == []
