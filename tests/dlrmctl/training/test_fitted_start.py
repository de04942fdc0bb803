"""`--wide-start fitted`: first-order weights start from the weights that `dlrmctl baseline` fits."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dlrmctl.assembly.wide import EDGES
from dlrmctl.baseline.first_order import fit_first_order
from dlrmctl.datasets.open import open_source
from dlrmctl.ranks.group import Ranks
from dlrmctl.rundir.stored_tables import CheckpointTables
from dlrmctl.settings.config import FITTED_EXAMPLES, Config
from tests.dlrmctl.cli.test_errors import criteo_lines
from tests.dlrmctl.commands import in_process
from tests.ranks import run_ranks

MODEL = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--max-steps", "1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fitted")
    (directory / "rows.txt").write_text(criteo_lines(1400))
    done = in_process("prepare", "criteo", directory / "rows.txt", "-o", directory / "store")
    assert done.status == 0, done.err
    return directory / "store"


SEVERAL = {"embedding": "qr", "qr_threshold": 2}  # tables of a feature


def _fits(store: str, tables: dict[str, dict[str, object]]) -> dict[str, list[float]]:
    import torch

    config = Config.of(path=store, tables=tables)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), 1, torch.device("cpu"), dist.group.WORLD)
    fit = fit_first_order(config, open_source(config.data), ranks, shown=False)
    assert fit is not None
    return {name: weights.tolist() for name, weights in fit.tables.items()} | {"": [fit.intercept]}


def test_training_starts_from_the_baseline(store: Path, tmp_path: Path):
    done = in_process("train", *MODEL, "--data", store, "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    fitted = in_process("baseline", "--data", store, "--run-dir", tmp_path / "baseline", "--json").json()
    assert f"logistic regression: l2 {fitted['l2']:.4g}, validation NE {fitted['validation']['ne']:.4f}" in done.err


def test_every_number_of_ranks_starts_from_the_same_weights(store: Path):
    [alone] = run_ranks(_fits, 1, str(store), {"cat_1": SEVERAL})
    assert run_ranks(_fits, 2, str(store), {"cat_1": SEVERAL}) == [alone, alone]
    assert "cat_1" not in alone  # ids with weights in several tables are left out
    assert all(any(alone[name]) for name in ("int_1", "cat_2", ""))


def test_only_what_the_fit_has_no_weights_for_starts_at_0(store: Path, tmp_path: Path):
    frozen = ["--sparse-lr", "0", "--qr-lr", "0", "--dense-lr", "0", "--wide-lr", "0"]
    (tmp_path / "tables.toml").write_text('[embeddings.tables.cat_1]\nembedding = "qr"\nqr_threshold = 2\n')
    flags = ["--config", tmp_path / "tables.toml", *frozen, "--data", store]
    done = in_process("train", *MODEL, *flags, "--run-dir", tmp_path / "run")
    assert done.status == 0, done.err
    fit = run_ranks(_fits, 1, str(store), {"cat_1": SEVERAL})[0]
    stored = CheckpointTables(tmp_path / "run" / "checkpoints" / "step-1")
    assert stored.network()["top.layers.1.bias"].tolist() == torch.tensor(fit[""]).tolist()
    tables = {name: weights for name, weights in stored.wide().items() if name != EDGES}
    assert tables.keys() > {f"{name}/weight" for name in fit if name}
    for name, weights in tables.items():
        expected = fit.get(name.removesuffix("/weight"), [0.0] * len(weights))
        assert weights.tolist() == torch.tensor(expected).tolist(), name


def test_where_nothing_can_be_fitted_training_starts_at_0_with_the_rate_of_that(store: Path, tmp_path: Path):
    rows = [f"{label},{user}" for label, user in zip([0, 1] * 150 + [0] * 50, range(350), strict=True)]
    (tmp_path / "rows.csv").write_text("y,user\n" + "\n".join(rows))
    (tmp_path / "schema.toml").write_text('label = "y"\ndense = []\nsparse = ["user"]\n')
    prepared = ["--schema", tmp_path / "schema.toml", tmp_path / "rows.csv", "-o", tmp_path / "store"]
    assert in_process("prepare", *prepared).status == 0
    one_label, all_in_several = ["--data", tmp_path / "store"], ["--data", store, "--qr-threshold", "2"]
    for number, flags in enumerate((one_label, [*all_in_several, "--embedding", "qr"])):
        run = tmp_path / str(number)
        done = in_process("train", *MODEL, *flags, "--run-dir", run)
        assert done.status == 0, done.err
        assert "first-order weights start at 0: no logistic regression can be fitted" in done.err
        settings = (run / "run.toml").read_text()
        assert 'wide_start = "zero"' in settings
        assert "wide_lr = 0.03" in settings


def test_small_data_is_fitted_and_a_warm_start_is_not(store: Path, tmp_path: Path):
    for examples, start, rate in ((FITTED_EXAMPLES, "fitted", 0.003), (FITTED_EXAMPLES + 1, "zero", 0.03)):
        optim = Config().fitted(examples, 1).optim
        assert (optim.wide_start, optim.wide_lr) == (start, rate)
    assert Config.of(wide_start="fitted").optim.wide_lr == 0.003
    assert in_process("train", *MODEL, "--data", store, "--run-dir", tmp_path / "first").status == 0
    done = in_process("train", "--data", store, "--init-from", tmp_path / "first", "--run-dir", tmp_path / "next")
    assert done.status == 0, done.err
    assert "logistic regression" not in done.err
    assert 'wide_start = "zero"' in (tmp_path / "next" / "run.toml").read_text()
    assert "wide_lr = 0.03" in (tmp_path / "next" / "run.toml").read_text()


@pytest.mark.parametrize("flags", [["--no-wide"], ["--init-from", "other"]])
def test_what_cannot_be_fitted_is_one_line(store: Path, tmp_path: Path, flags: list[str]):
    run = ["--data", str(store), "--run-dir", str(tmp_path / "run")]
    if "other" in flags:
        assert in_process("train", *MODEL, "--data", store, "--run-dir", tmp_path / "other").status == 0
        flags = ["--init-from", str(tmp_path / "other")]
    done = in_process("train", *run, *flags, "--wide-start", "fitted")
    assert done.status == 2
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], done.err
    assert "optim.wide_start = fitted" in lines[0]
    assert not (tmp_path / "run").exists()
