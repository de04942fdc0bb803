"""`prepare --extend --forget`: rows of values that no longer occur belong to new ones, and start anew."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.known_ids import KnownIds
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.store.store import Store
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.config import resolve
from dlrmctl.settings.toml import read_toml
from tests.dlrmctl.checkpoints import read_tensors
from tests.dlrmctl.commands import in_process

SCHEMA = """label = "y"
sparse = ["user", "item", "friends"]
[columns.item]
table = "user"
[columns.friends]
table = "user"
max_ids = 3
"""
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
        of = [[f"u{users[n * step % len(users)]}" for step in (1, 7, 3, 9)] for n in range(420)]
        lines = [f"{n % 3 // 2},{a},{b},{'|'.join((b, c, d)[: n % 4])}" for n, (a, b, c, d) in enumerate(of)]
        (place / f"{day}.csv").write_text("\n".join(["y,user,item,friends", *lines]) + "\n")
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


STILL = ["--sparse-lr", "0", "--wide-lr", "0", "--max-steps", "1", "--evaluations", "1"]


def _trained(place: Path, name: str, *flags: str) -> str:
    """Runs of the three days, the last of which changes no row but those of new values; what that one tells."""
    _done("train", "--data", place / "1", *MODEL, *flags, "--run-dir", place / f"{name}-1")
    _done("train", "--init-from", place / f"{name}-1", "--data", place / "2", "--run-dir", place / f"{name}-2")
    last = ["--data", place / "3", *STILL, "--batch-size", "4", "--run-dir", place / f"{name}-3"]
    return _done("train", "--init-from", place / f"{name}-2", *last)


def _rows_before_and_after(place: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    before, after = (read_tensors(place / f"{name}-{day}" / "checkpoints" / "best") for day in (2, 3))
    return before, after


def test_rows_of_new_values_start_anew(place: Path):
    told, still = _trained(place, "full", "--embedding", "full"), STILL
    assert "20 rows of new values in place of forgotten ones" in told
    fresh = ["--embedding", "full", *still, "--run-dir", place / "fresh"]
    _done("train", "--data", place / "3", *MODEL, *fresh)
    (before, after), initial = _rows_before_and_after(place, "full"), read_tensors(place / "fresh/checkpoints/best")
    first, second, third = (_values(Store(place / day)) for day in DAYS)
    same = torch.tensor([0, 1, *(n + 2 for n, name in enumerate(second) if third[n] == name)])
    other = torch.tensor([n + 2 for n, name in enumerate(second) if third[n] != name])
    for name in ("tables.user/weight", "wide.user/weight", "wide.item/weight", "wide.friends/weight"):
        assert torch.equal(after[name][same], before[name][same]), name
        assert not torch.equal(after[name][other], before[name][other]), name
    assert not after["wide.user/weight"][other].any()
    for name in ("tables.user/sum", "wide.user/sum", "wide.friends/sum"):
        anew = (before[name][other] > 0) & (after[name][other] == 0)  # of the values that the step did not have
        assert anew.sum() > len(other) // 3, name
        assert (after[name][same] >= before[name][same]).all(), name
    # The scale of initial values is that of the first day's rows.
    scale = (len(third) + 2) ** 0.5 / (len(first) + 2) ** 0.5
    assert torch.allclose(after["tables.user/weight"][other], initial["tables.user/weight"][other] * scale, rtol=1e-4)
    done = in_process("evaluate", place / "full-2", "--data", place / "3")
    assert done.status == 0, done.err


def test_rows_that_values_share_keep_their_weights_and_rows_of_a_head_start_anew(place: Path):
    second, third = (_values(Store(place / day)) for day in ("2", "3"))
    other = torch.tensor([n + 2 for n, name in enumerate(second) if third[n] != name])
    flags = ["--collisions", "3", "--qr-threshold", "10"]
    told = _trained(place, "hash", "--embedding", "hash", *flags)
    assert "20 new values in place of forgotten ones share rows with other values" in told
    before, after = _rows_before_and_after(place, "hash")
    for name in ("tables.user/weight", "wide.user/weight", "wide.friends/weight"):
        assert torch.equal(after[name][: len(before[name])], before[name]), name
    told = _trained(place, "head", "--embedding", "head", "--head-share", "0.95", "--collisions", "2", *flags[2:])
    config = resolve(RunDirectory(place / "head-3", writes=False).settings(), {}, file_name="run.toml")
    feature = feature_tables(config, Store(place / "3").schema)[0]
    own = feature.own_rows(other)
    assert own is not None
    assert feature.before
    assert 0 < len(own[1]) < len(other)
    assert f"{len(own[1])} rows of new values in place of forgotten ones" in told
    assert f"{len(other) - len(own[1])} new values in place of forgotten ones share rows" in told
    before, after = _rows_before_and_after(place, "head")
    for name in ("tables.user/weight", "wide.user/weight", "wide.friends/weight"):
        changed = (after[name][: len(before[name])] != before[name]).any(1).nonzero()[:, 0]
        assert changed.tolist() == sorted(own[1].tolist()), name


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
