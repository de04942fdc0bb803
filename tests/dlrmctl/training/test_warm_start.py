"""`--init-from`: known rows are kept to the bit, new ones start as on the first day, and the rest is carried over."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.tables import feature_tables
from dlrmctl.data.store.store import Store
from dlrmctl.embeddings.init import fill_rows, table_distributions
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config, resolve
from dlrmctl.settings.toml import read_settings
from dlrmctl.training.warm_start import WarmStart
from tests.dlrmctl.checkpoints import read_tensors
from tests.dlrmctl.commands import in_process, run_as_ranks
from tests.ranks import run_ranks

KINDS = [
    'embedding = "full"',
    'embedding = "hash"',
    'embedding = "qr"',
    'embedding = "qr"\nqr_layout = "quotient"\noperation = "add"',
    'embedding = "kway"',
    'embedding = "crt"\ncrt_headroom = 2.0',
    'embedding = "head"',
    'embedding = "head"\ntail = "qr"',
    'embedding = "double-hash"',
]
MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--epochs", "1", "--evaluations", "1", "--wide"]
STILL = ["--sparse-lr", "0", "--qr-lr", "0", "--wide-lr", "0", "--dense-lr", "0", "--max-steps", "1"]
IDS = (120, 150, 210)  # of days 1, 2 and 3


def _day(path: Path, ids: int, *, dense: int = 2) -> Path:
    draw = np.random.default_rng(ids)
    sparse = draw.integers(0, ids, (700, len(KINDS)))
    sparse[-1] = ids - 1
    path.mkdir()
    np.save(path / "a_dense.npy", draw.lognormal(size=(700, dense)).astype(np.float32))
    np.save(path / "a_labels.npy", draw.integers(0, 2, (700, 1)).astype(np.int32))
    np.save(path / "a_sparse.npy", sparse.astype(np.int32))
    done = in_process("prepare", "npy", path, "-o", path / "store")
    assert done.status == 0, done.err
    return path / "store"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores and runs of three days. The weights of the later runs do not move."""
    place = tmp_path_factory.mktemp("days")
    first, *later = [_day(place / f"day-{number}", ids) for number, ids in enumerate(IDS, 1)]
    named = zip(Store(first).schema.keys, KINDS, strict=True)
    sections = [f"[embeddings.tables.{name}]\nqr_threshold = 0\n{kind}" for name, kind in named]
    (place / "my.toml").write_text("\n".join(sections))
    run = place / "run-1"
    arguments = ["--config", place / "my.toml", "--data", first, "--batch-size", "32", *MODEL]
    done = in_process("train", *arguments, "--run-dir", run)
    assert done.status == 0, done.err
    for number, store in enumerate(later, 2):
        done = in_process("train", "--init-from", run, "--data", store, "--run-dir", place / f"run-{number}", *STILL)
        assert done.status == 0, done.err
        assert "new rows in its tables" in done.err
        run = place / f"run-{number}"
    return place


def _tensors(run: Path) -> dict[str, Tensor]:
    return read_tensors(run / "checkpoints" / "best")


def _config(run: Path) -> Config:
    return resolve(read_settings(run / "run.toml"), {})


def test_known_rows_are_kept_and_new_ones_start_as_on_the_first_day(place: Path):
    days = [_tensors(place / f"run-{number}") for number in (1, 2, 3)]
    distributions = table_distributions(
        feature_tables(_config(place / "run-1"), Store(place / "day-1" / "store").schema), 8
    )
    assert len(distributions) == 1 + 1 + 2 + 2 + 3 + 3 + 1 + 3 + 2
    for before, after in pairwise(days):
        for name, distribution in distributions.items():
            old, new = before[f"tables.{name}/weight"], after[f"tables.{name}/weight"]
            assert torch.equal(new[: len(old)], old)
            fresh = torch.empty_like(new)
            fill_rows(fresh, distribution, table=name, seed=0)
            assert torch.equal(new[len(old) :], fresh[len(old) :])
            sums, grown = before[f"tables.{name}/sum"], after[f"tables.{name}/sum"]
            assert int((grown[: len(sums)] != sums).sum()) <= 32  # one batch
            assert torch.equal(after[f"wide.{name}/weight"][: len(old)], before[f"wide.{name}/weight"])
    rows = [{name: len(day[f"tables.{name}/weight"]) for name in distributions} for day in days]
    names = Store(place / "day-1" / "store").schema.keys
    highest = {f"{names[2]}@q", f"{names[3]}@q", f"{names[4]}@3", f"{names[7]}@q"}
    own = {names[0], names[6], f"{names[7]}@h"}
    assert {name for name in distributions if rows[2][name] > rows[0][name]} == own | highest


def test_dense_state_and_position_are_carried_over(place: Path):
    before, after = (_tensors(place / f"run-{number}") for number in (1, 2))
    assert int(after["optimizer.group_0/step"]) == int(before["optimizer.group_0/step"]) + 1
    assert int(after["averaging.step"]) == int(before["averaging.step"]) + 1
    kept = [name for name in before if name.startswith(("network.inputs.", "wide.edges")) or name.endswith("/z")]
    assert {"network.inputs.knots_IK", "averaging.top.layers.0.weight/z"} <= {*kept}
    assert [name for name in kept if not torch.equal(before[name], after[name])] == []
    state = json.loads((place / "run-3" / "checkpoints" / "best" / "state.json").read_text())
    assert state["progress"]["steps_before"] == 600 // 32 + 1
    assert _config(place / "run-3").grown[Store(place / "day-1" / "store").schema.keys[6]] == (120, 150)


def test_a_grown_run_is_scored_and_resumed(place: Path):
    results = json.loads((place / "run-3" / "results.json").read_text())["test"]
    done = in_process("evaluate", place / "run-3", "--split", "test", "--json")
    assert done.json()["test"]["log_loss"] == pytest.approx(results["log_loss"], rel=1e-6)
    done = in_process("train", "--resume", place / "run-3", "--max-steps", "3")
    assert done.status == 0, done.err


def test_another_optimizer_starts_anew_and_dense_inputs_can_be_fitted_again(place: Path, tmp_path: Path):
    arguments = ["--init-from", place / "run-1", "--data", place / "day-2" / "store", "--run-dir", tmp_path / "run"]
    done = in_process("train", *arguments, *STILL[:-4], "--dense-optimizer", "sgd", "--refit-dense", "--max-steps", "2")
    assert done.status == 0, done.err
    assert "the state of the dense optimizer starts anew: dense_optimizer is sgd, not shampoo" in done.err
    before, after = _tensors(place / "run-1"), _tensors(tmp_path / "run")
    assert not torch.equal(before["network.inputs.knots_IK"], after["network.inputs.knots_IK"])


def test_a_compressed_model_is_expanded(place: Path, tmp_path: Path):
    done = in_process("compress-embeddings", place / "run-1", "-o", tmp_path / "small", "--method", "fp32")
    assert done.status == 0, done.err
    arguments = ["--init-from", tmp_path / "small", "--data", place / "day-2" / "store", *STILL]
    done = in_process("train", *arguments, "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    before, after = _tensors(place / "run-2"), _tensors(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before if name.endswith("/weight"))


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (["--data", "{}/narrow"], 2, "the new data lacks the dense feature"),
        (["--data", "{}/full"], 2, "its crt tables have room for"),
        (["--data", "{}/day-2/store", "--dim", "16", "--bottom-mlp", "16-16"], 2, "was trained with"),
    ],
)
def test_what_does_not_fit_is_one_line(place: Path, flags: list[str], status: int, message: str):
    for name, ids, dense in (("narrow", 120, 1), ("full", 400, 2)):
        if not (place / name).exists():
            _day(place / f"{name}-day", ids, dense=dense).rename(place / name)
    done = in_process("train", "--init-from", place / "run-1", *(flag.format(place) for flag in flags))
    assert (done.status, message in done.err) == (status, True), done.err
    assert done.err.count("error:") == 1


def test_the_plan_of_a_warm_start_is_that_of_its_run(place: Path):
    store = place / "day-2" / "store"
    done = in_process("plan", "--init-from", place / "run-1", "--data", store, "--json")
    assert done.status == 0, done.err
    planned = {table["table"]: table["rows"] for table in json.loads(done.out)["tables"]}
    trained = {table["table"]: table["rows"] for table in json.loads((place / "run-2" / "plan.json").read_text())}
    assert planned == {name: rows for name, rows in trained.items() if name in planned}
    refused = in_process("bench", "step", "--init-from", place / "run-1")
    assert (refused.status, "does not take --init-from" in refused.err) == (2, True)


def _rows_on_this_rank(run: str, store: str) -> dict[str, list[tuple[int, Tensor]]]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    assert group is not None
    ranks, source = Ranks(rank, world_size, world_size, torch.device("cpu"), group), Store(Path(store))
    start = WarmStart.open(Path(run), ranks, refit=False)
    config = start.grown(start.config.change(sharding="row_wise"), source)
    inputs = start.inputs(config, source.features)
    tensors = build_model(config, source.features, ranks, batch_size=16, inputs=inputs).tensors(with_sums=True)
    start.fill_tables(tensors, config, source.features)
    return {
        name: [(s.metadata.shard_offsets[0], s.tensor.detach().clone()) for s in tensor.local_shards()]
        for name, tensor in tensors["tables"].items()
        if name.endswith("/weight")
    }


def test_tables_that_are_divided_over_ranks_take_the_same_rows(place: Path):
    parts = run_ranks(_rows_on_this_rank, 2, str(place / "run-1"), str(place / "day-2" / "store"))
    expected = _tensors(place / "run-2")
    for name in parts[0]:
        pieces = sorted((piece for part in parts for piece in part.get(name, [])), key=lambda piece: piece[0])
        assert torch.equal(torch.cat([rows for _, rows in pieces]), expected[f"tables.{name}"])


def test_a_training_on_two_ranks_starts_from_the_same_rows(place: Path, tmp_path: Path):
    one = ["train", "--init-from", place / "run-1", "--data", place / "day-2" / "store", *STILL]
    done = run_as_ranks(2, *one, "--run-dir", tmp_path / "run", cwd=tmp_path)
    assert done.status == 0, done.err
    alone, shared = _tensors(place / "run-2"), _tensors(tmp_path / "run")
    names = [name for name in alone if name.startswith("tables.") and name.endswith("/weight")]
    assert names
    assert all(torch.equal(alone[name], shared[name]) for name in names)
