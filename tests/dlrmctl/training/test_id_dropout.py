"""Ids that count as rare in training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dlrmctl.data.batch import Batch
from dlrmctl.data.reader import Reader
from dlrmctl.data.schema import MISSING_ROW, RARE_ROW
from dlrmctl.data.source import Source
from dlrmctl.data.store.store import Store
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.ranks.group import Ranks, process_group
from dlrmctl.training.unknown_ids import IdDropout
from tests.data.visits import SHARED, visits, write, write_schema
from tests.dlrmctl.commands import in_process

STEPS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Items in lists and alone; users, of whom a part is rare, and some missing."""
    place = tmp_path_factory.mktemp("store")
    schema = write_schema(place / "my.toml", SHARED)
    rows = write(visits(items=400), place / "rows.csv")
    done = in_process("prepare", "--schema", schema, rows, "-o", place / "store", "--min-count", "8")
    assert done.status == 0, done.err
    return Store(place / "store")


def _ids(source: Source, rate: float, ranks: Ranks, step: int) -> tuple[Batch, list[Tensor], list[Tensor]]:
    """The first batch of this rank, and the ids of each feature before and after."""
    reader = Reader(source, "train", batch_size=512, rank=ranks.rank, world_size=ranks.world_size, seed=3)
    batch = next(iter(reader.batches(0)))
    lengths = [len(batch)] * len(batch.keys) if batch.lengths_FB is None else batch.lengths_FB.sum(1).tolist()
    before = batch.ids.clone().split(lengths)
    IdDropout(source, rate, 0, ranks)(batch, step)
    return batch, list(before), list(batch.ids.split(lengths))


def test_ids_count_as_rare_as_often_as_is_asked(store: Store):
    known = {column.name: column.rare_train for column in _columns(store) if column.rows >= 100}
    rate = 0.2
    drawn = dict.fromkeys(known, 0)
    examples = dict.fromkeys(known, 0)
    with process_group("cpu") as ranks:
        for step in range(STEPS):
            batch, before, after = _ids(store, rate, ranks, step)
            for name, old, new in zip(batch.keys, before, after, strict=True):
                if name not in known:
                    assert torch.equal(old, new)
                    continue
                changed = old != new
                assert (new[changed] == RARE_ROW).all()
                assert torch.equal(new == MISSING_ROW, old == MISSING_ROW)
                drawn[name] += int(changed.sum())
                examples[name] += int((old > RARE_ROW).sum())
    assert 0.01 < known["user"] < rate  # it is rare without this in a part of the examples
    for name, share in known.items():
        expected = (rate - share) * examples[name]
        assert abs(drawn[name] - expected) < 6 * expected**0.5  # lists are drawn whole, so their number varies more


def _columns(store: Store) -> list:  # type: ignore[type-arg]
    from dlrmctl.data.preparation.report import PrepareReport

    assert store.manifest.preparation is not None
    return list(PrepareReport.from_dict(store.manifest.preparation.report).columns)


def test_the_same_ids_are_rare_for_any_number_of_ranks(store: Store):
    with process_group("cpu") as ranks:
        _, _, whole = _ids(store, 0.2, ranks, 7)
        parts = [_ids(store, 0.2, replace(ranks, rank=rank, world_size=2), 7)[2] for rank in range(2)]
    for feature, ids in enumerate(whole):
        assert torch.equal(torch.cat([part[feature] for part in parts]), ids)


def test_features_without_a_row_for_rare_values_keep_their_ids():
    source = Synthetic(0, 1024, 64, 64, cardinalities=(3, 40))
    with process_group("cpu") as ranks:
        _, before, after = _ids(source, 0.5, ranks, 1)
    assert all(map(torch.equal, before, after))


def test_users_who_are_new_are_scored_by_a_row_that_was_trained(tmp_path: Path):
    """Every user of the training split returns, so that without this no example trains the row of the others."""
    schema = write_schema(tmp_path / "my.toml", SHARED)
    rows = write(visits(), tmp_path / "rows.csv")
    done = in_process("prepare", "--schema", schema, rows, "-o", tmp_path / "store", "--min-count", "1")
    assert done.status == 0, done.err
    moved = []
    for rate in ("0", "0.05"):
        run = tmp_path / rate
        flags = ["--bottom-mlp", "8", "--top-mlp", "8-1", "--dim", "8", "--batch-size", "128", "--epochs", "1"]
        done = in_process("train", "--data", tmp_path / "store", *flags, "--id-dropout", rate, "--run-dir", run)
        assert done.status == 0, done.err
        moved.append(_accumulated(run))
    assert moved[0] == 0 < moved[1]


def _accumulated(run: Path) -> float:
    """What row-wise AdaGrad has summed for the row of rare users."""
    from tests.dlrmctl.checkpoints import read_tensors

    tensors = read_tensors(next((run / "checkpoints").glob("step-*")))
    [name] = [name for name in tensors if name.startswith("tables.user/") and not name.endswith("weight")]
    return float(tensors[name].flatten()[RARE_ROW])
