"""`dlrmctl baseline`: the fit is the optimum, and its result is a run like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist

from dlrmctl.assembly.baseline import build_baseline, first_order_tables
from dlrmctl.baseline.examples import RowMaker, SplitExamples
from dlrmctl.baseline.fit import fit
from dlrmctl.data.schema import Schema, SparseFeature
from dlrmctl.data.store.store import Store
from dlrmctl.errors import UserError
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.settings.baseline import BaselineSettings
from dlrmctl.settings.config import resolve
from tests.data.visits import WEIGHTED, visits, write, write_schema
from tests.dlrmctl.commands import in_process
from tests.dlrmctl.small_tables import SCHEMA, TRAIN, rows_of_a_table
from tests.ranks import run_ranks


def prepared(place: Path, rows: str, *options: str) -> Path:
    (place / "my.toml").write_text(SCHEMA)
    (place / "my.csv").write_text(rows)
    done = in_process("prepare", "--schema", place / "my.toml", place / "my.csv", "-o", place / "store", *options)
    assert done.status == 0, done.err
    return place / "store"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("table"), rows_of_a_table(1400), "--min-count", "1")


@pytest.fixture(scope="module")
def run(store: Path) -> Path:
    """A baseline with a penalty chosen on the validation split."""
    path = store.parent / "runs" / "chosen"
    done = in_process("baseline", "--data", store, "--run-dir", path, "--json")
    assert done.status == 0, done.err
    return path


def _results(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def _alone() -> Ranks:
    return Ranks(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


def _examples(store: Path, settings: BaselineSettings, ranks: Ranks | None = None, **options: int) -> SplitExamples:
    source = Store(store)
    maker = RowMaker(build_baseline(settings, source.features))
    return SplitExamples(maker, source, "train", ranks or _alone(), seed=0, tell=lambda done, total: None, **options)


def _whole(examples: SplitExamples) -> tuple[np.ndarray, np.ndarray]:
    """All rows as a dense matrix, and their labels, in an order of their own."""
    parts = list(examples.read(0, examples.num_rows))
    rows_ND = np.concatenate([part.rows.dense().numpy() for part in parts])
    labels_N = np.concatenate([part.labels.numpy() for part in parts])
    order = np.lexsort((labels_N, *rows_ND.T))
    return rows_ND[order], labels_N[order]


def _optimum(rows_ND: np.ndarray, labels_N: np.ndarray, l2: float) -> float:
    """The log loss of the best weights, found by Newton's method in float64."""
    design = np.column_stack([rows_ND, np.ones(len(rows_ND))])
    penalty = np.diag([l2] * rows_ND.shape[1] + [0.0])
    point = np.zeros(design.shape[1])
    for _ in range(20):
        probability_N = 1 / (1 + np.exp(-design @ point))
        gradient = design.T @ (probability_N - labels_N) + penalty @ point
        curvature_N = probability_N * (1 - probability_N)
        point -= np.linalg.solve(design.T @ (curvature_N[:, None] * design) + penalty, gradient)
    return float(np.logaddexp(0, design @ point).mean() - labels_N @ (design @ point) / len(labels_N))


def test_the_fit_is_the_optimum_of_a_dense_newton_iteration(store: Path):
    for dense in ("buckets", "raw"):
        path = store.parent / "runs" / dense
        done = in_process("baseline", "--data", store, "--l2", "3", "--dense", dense, "--run-dir", path, "--json")
        assert done.status == 0, done.err
        loss = _optimum(*_whole(_examples(store, BaselineSettings(dense=dense))), 3.0)
        # The solver stops within 1e-6 of the optimum, and scores are float32.
        assert done.json()["train"]["log_loss"] == pytest.approx(loss, abs=2e-6)


def test_a_penalty_of_0_is_for_the_solver_that_needs_no_hessian(store: Path):
    arguments = ("baseline", "--data", store, "--l2", "0", "--json", "--run-dir", store.parent / "runs" / "plain")
    refused = in_process(*arguments, "--solver", "newton")
    assert refused.status == 2
    assert "hint: --solver pb-lbfgs takes any number of features and ranks, and a penalty of 0" in refused.err
    done = in_process(*arguments)
    assert done.status == 0, done.err
    assert done.json()["solver"] == "pb-lbfgs"
    loss = _optimum(*_whole(_examples(store, BaselineSettings())), 1e-9)
    assert done.json()["train"]["log_loss"] == pytest.approx(loss, abs=2e-6)  # as above


def test_lists_count_by_their_weights_and_averaged_ones_by_their_share(tmp_path: Path):
    schema = write_schema(tmp_path / "my.toml", WEIGHTED | {"dense": []})
    table, store = write(visits(700), tmp_path / "a.csv"), tmp_path / "store"
    for command in (
        ("prepare", "--schema", schema, table, "-o", store, "--min-count", "1"),
        ("baseline", "--data", store, "--l2", "3", "--run-dir", tmp_path / "run", "--json"),
    ):
        done = in_process(*command)
        assert done.status == 0, done.err
    rows = visits(700)[:600]  # the training split
    columns = {item: number for number, item in enumerate({*rows["item"], *rows["history"].explode()})}
    design_FNC = np.zeros((3, len(rows), len(columns)))
    for row, (item, history, seconds) in enumerate(rows.select("item", "history", "seconds").iter_rows()):
        design_FNC[0, row, columns[item]] = 1
        for value, weight in list(zip(history, seconds, strict=True))[-4:]:
            design_FNC[1, row, columns[value]] += weight
        for value in history[:3]:
            design_FNC[2, row, columns[value]] += 1 / len(history[:3])
    loss = _optimum(np.concatenate(design_FNC, 1), rows["clicked"].to_numpy(), 3.0)
    assert done.json()["train"]["log_loss"] == pytest.approx(loss, abs=2e-6)  # as above
    assert in_process("export", tmp_path / "run", "-o", tmp_path / "m.dlrm").status == 0  # it compares the scores


def test_rows_have_counts_of_ids_and_one_active_bucket_per_dense_feature(store: Path):
    examples = _examples(store, BaselineSettings())
    block = Store(store).read_block("train", 0)
    assert block.lengths_FN is not None
    rows_ND, _ = _whole(examples)
    buckets = rows_ND.shape[1] - sum(feature.rows for feature in Store(store).schema.sparse)
    assert (rows_ND[:, :buckets].sum(1) == 2).all()  # age and price
    assert rows_ND[:, 0].sum() == np.isnan(block.dense_IN[0]).sum() > 0  # age is missing
    assert rows_ND[:, buckets:].sum() == block.lengths_FN.sum()
    assert rows_ND.max() == block.lengths_FN.max() == 3  # a tag three times


def test_examples_that_are_read_again_are_those_in_memory(store: Path):
    settings = BaselineSettings(dense="raw")
    kept, streamed = _examples(store, settings), _examples(store, settings, most_bytes=0)
    assert kept.in_memory
    assert not streamed.in_memory
    for one, other in zip(_whole(kept), _whole(streamed), strict=True):
        assert (one == other).all()
    middle = [part.labels for part in streamed.read(100, 200)]
    assert torch.equal(torch.cat(middle), torch.cat([p.labels for p in streamed.read(0, 300)])[100:200])


def test_the_penalty_is_chosen_on_the_validation_split(run: Path):
    results = _results(run)
    losses = {point["l2"]: point["validation"]["log_loss"] for point in results["path"]}
    assert results["l2"] == min(losses, key=lambda l2: losses[l2])
    assert len(losses) > 3
    assert results["validation"]["log_loss"] == pytest.approx(losses[results["l2"]], abs=1e-6)
    assert results["validation"]["ne"] < 1
    assert all(results[split]["auc_se"] > 0 for split in ("train", "validation", "test"))


def test_a_baseline_is_a_run_for_the_other_commands(run: Path, store: Path, tmp_path: Path):
    results = _results(run)
    evaluated = in_process("evaluate", run, "--slice", "item", "--json").json()
    assert evaluated["test"] == results["test"]
    assert len(evaluated["slices"]) == 11
    listed = in_process("runs", run.parent, "--json").json()
    assert {"baseline"} == {entry["embedding"] for entry in listed}
    rows = tmp_path / "new.csv"
    rows.write_text(rows_of_a_table(300, seed=1))
    done = in_process("predict", run, rows, "-o", tmp_path / "out.csv", "--labelled", "--json")
    assert done.json()["metrics"]["auc"] > 0.6, done.err
    assert pl.read_csv(tmp_path / "out.csv")["probability"].null_count() == 0
    exported = in_process("export", run, "-o", tmp_path / "model.pt2", "--json")
    assert exported.json()["checks"]["largest_difference"] < 1e-6, exported.err


def test_what_is_for_trainings_alone_is_refused(run: Path, tmp_path: Path):
    for arguments in (
        ("train", "--resume", run),
        ("train", "--config", run / "run.toml"),
        ("compress-embeddings", run, "-o", tmp_path / "small", "--method", "int8"),
        ("export", run, "-o", tmp_path / "model.pt2", "--precision", "int8"),
    ):
        done = in_process(*arguments)
        assert done.status == 2, done.err
        assert "baseline" in done.err


def test_a_training_shows_the_baseline_of_its_data(run: Path, store: Path):
    done = in_process("train", *TRAIN, "--data", store, "--epochs", "1", "--run-dir", run.parent / "trained", "--json")
    assert done.status == 0, done.err
    results = done.json()
    assert results["validation"]["baseline_ne"] == min(
        _results(path.parent)["validation"]["ne"]
        for path in run.parent.glob("*/results.json")
        if path.parent.name != "trained"
    )
    compared = in_process("compare", run, run.parent / "trained", "--json")
    assert compared.json()["log_loss"]["a"] == pytest.approx(_results(run)["test"]["log_loss"], abs=1e-6)


def _fit_together(store: str, run: str) -> dict[str, Any]:
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), 1, torch.device("cpu"), dist.group.WORLD)  # type: ignore[arg-type]
    config = resolve({"baseline": {}}, {"path": store, "l2": "3"})
    examples = _examples(Path(store), BaselineSettings(), ranks)
    return fit(config, RunDirectory(Path(run), writes=ranks.is_main), ranks) | {"rows": examples.num_rows}


def test_two_ranks_fit_what_one_fits(store: Path, tmp_path: Path):
    alone = in_process("baseline", "--data", store, "--l2", "3", "--run-dir", tmp_path / "alone", "--json").json()
    together = run_ranks(_fit_together, 2, str(store), str(tmp_path / "together"))
    assert [found["rows"] for found in together] == [600, 600]
    for found in together:
        for split in ("train", "validation", "test"):
            assert found[split]["log_loss"] == pytest.approx(alone[split]["log_loss"], abs=2e-6)


def test_unusable_data_is_refused_in_one_line(tmp_path: Path):
    header = "clicked,age,price,user,item,tags\n"
    same = header + "".join(f"{n % 2},1,2,u,i,a\n" for n in range(140))
    split = header + "".join(f"{n % 2},,,{n % 2},i,\n" for n in range(140))
    one = header + "".join(f"1,{n},2,u{n % 3},i,a\n" for n in range(140))
    for name, rows, options, problem in (
        ("same", same, (), "all features are constant"),
        ("split", split, ("--l2", "0"), "user = '0' occurs with one label only, like 1 other feature"),
        ("one", one, (), "training labels in"),
        ("one", one, ("--solver", "sgd"), "--solver = 'sgd' must be one of"),
        ("split", split, ("--max-features", "2"), "max_features"),
    ):
        place = tmp_path / name
        if not place.exists():
            place.mkdir()
            prepared(place, rows, "--min-count", "1")
        done = in_process("baseline", "--data", place / "store", "--run-dir", place / "run", *options)
        assert done.status == 2, done.err
        assert problem in done.err
        assert not (place / "run").exists()


def test_large_tables_are_hashed_to_at_most_max_features():
    schema = Schema(("x",), (SparseFeature("a", 10), SparseFeature("b", 1000), SparseFeature("c", 300, 4)))
    for most in (3, 50, 400, 700, 1309, 1310):
        tables = first_order_tables(BaselineSettings(max_features=most), schema)
        rows = [sum(table.partition.table_rows) for table in tables]
        assert most / 2 < sum(rows) <= most
        assert rows[0] <= rows[2] <= rows[1]
    assert [table.embedding for table in first_order_tables(BaselineSettings(), schema)] == ["full"] * 3
    with pytest.raises(UserError, match="below the number of sparse features, 3"):
        first_order_tables(BaselineSettings(max_features=2), schema)


def test_the_benchmark_fits_in_other_ways_and_draws_the_way_to_the_optimum(store: Path, tmp_path: Path):
    picture = tmp_path / "baseline.svg"
    done = in_process(
        *("bench", "baseline", "--data", store, "--rounds", "1", "--passes", "20", "--plot", picture, "--json")
    )
    assert done.status == 0, done.err
    result = done.json()
    ours = [found for name, found in result["programs"].items() if name.startswith("dlrmctl")]
    assert all(found["test_auc"] > 0.6 and found["seconds"]["median"] > 0 for found in ours)
    assert {name.split()[0] for name in result["solvers"]} == {"pb-lbfgs", "full", "SVRG", "Adam"}
    curves = [found["curve"] for found in result["solvers"].values()]
    assert all(curve[0][1] > curve[-1][1] > -1e-9 for curve in curves)
    assert "objective above its optimum" in picture.read_text()
