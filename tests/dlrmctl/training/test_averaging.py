"""`--averaging`: gradients at y, evaluation at x, and exact resuming."""

from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dlrmctl.assembly.model import build_model
from dlrmctl.assembly.optimizers import build_averaging, build_dense_optimizer
from dlrmctl.data.reader import Reader
from dlrmctl.data.synthetic.synthetic import Synthetic
from dlrmctl.ranks.group import Ranks
from dlrmctl.settings.config import Config, resolve
from dlrmctl.training.step import TrainingStep
from tests.dlrmctl.checkpoints import assert_bitwise_equal, read_tensors
from tests.dlrmctl.commands import SMALL, in_process, run_as_ranks
from tests.ranks import run_ranks

RUN = [*SMALL, "--synthetic-rows", "6000", "--evaluations", "2", "--dense-lr", "0.02"]
STEPS = 6_000 // 256


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("averaged") / "run"
    done = in_process("train", *RUN, "--averaging", "gpa", "--averaging-horizon", "10", "--run-dir", path)
    assert done.status == 0, done.err
    return path


@pytest.mark.parametrize(
    ("nproc", "flags"),
    [
        (1, ["--averaging", "gpa"]),
        pytest.param(
            *(2, ["--averaging", "gpa", "--shampoo-schedule", "doubling", "--shampoo-statistics", "1"]),
            marks=pytest.mark.slow,
        ),
        (1, ["--averaging", "ema", "--dense-optimizer", "sgd"]),
        (1, ["--averaging", "schedule-free", "--dense-optimizer", "adamw"]),
        (1, ["--averaging", "ema", "--dense-optimizer", "muon"]),
        (1, ["--averaging", "gpa", "--averaging-mu-y", "1", "--dense-optimizer", "adagrad"]),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "-".join(value[1::2]),
)
def test_a_run_that_was_cut_in_the_middle_of_an_epoch_ends_like_a_whole_one(
    nproc: int, flags: list[str], tmp_path: Path
):
    """The cut one evaluates at its last step, the whole one does not: looking at x leaves no trace."""

    def train(*arguments: str | Path) -> None:
        words = ("train", *arguments)
        done = in_process(*words) if nproc == 1 else run_as_ranks(nproc, *words, cwd=tmp_path)
        assert done.status == 0, done.err

    train(*RUN, *flags, "--run-dir", tmp_path / "whole")
    train(*RUN, *flags, "--run-dir", tmp_path / "cut", "--max-steps", "15")
    train("--resume", tmp_path / "cut", "--max-steps", "0")
    whole, cut = (tmp_path / name / "checkpoints" / f"step-{STEPS}" for name in ("whole", "cut"))
    assert any(name.startswith("averaging.") for name in read_tensors(whole))
    assert_bitwise_equal(whole, cut)


def test_what_people_read_of_a_checkpoint_is_the_average(averaged: Path):
    results = in_process("train", "--resume", averaged, "--json").json()
    evaluated = in_process("evaluate", averaged, "--split", "test", "--json")
    assert evaluated.status == 0, evaluated.err
    tensors = read_tensors(averaged / "checkpoints" / "best")
    inputs = "network.inputs."  # numbers of the data, which no step moves
    for name in (name for name in tensors if name.startswith("network.") and not name.startswith(inputs)):
        z = tensors[f"averaging.{name.removeprefix('network.')}/z"]
        assert not torch.equal(tensors[name], z)
    # Other lookups than in training, so to the rounding of float32; y instead of x differs in the third digit.
    assert evaluated.json()["test"]["log_loss"] == pytest.approx(results["test"]["log_loss"], rel=1e-6)


def test_the_average_is_exported_and_compressed(averaged: Path, tmp_path: Path):
    exported = in_process("export", averaged, "-o", tmp_path / "model.pt2", "--json")
    assert exported.status == 0, exported.err
    assert exported.json()["checks"]["largest_difference"] < 1e-5
    compressed = in_process("compress-embeddings", averaged, "-o", tmp_path / "small", "--target-ratio", "2")
    assert compressed.status == 0, compressed.err
    kept = read_tensors(averaged / "checkpoints" / "best")
    [file] = (tmp_path / "small").glob("dense*.safetensors")
    for name, weight in load_file(file).items():
        assert torch.equal(weight, kept[f"network.{name}"])


def test_a_run_is_continued_with_its_averaging_and_no_other(tmp_path: Path):
    tiny = [*SMALL, "--synthetic-rows", "2000", "--max-steps", "2", "--run-dir", tmp_path / "run"]
    assert in_process("train", *tiny, "--averaging", "none").status == 0
    done = in_process("train", "--resume", tmp_path / "run", "--averaging", "gpa", "--max-steps", "4")
    assert done.status == 2
    assert "was trained with optim.averaging = none, not gpa" in done.err


@cache  # in each rank, for all tests
def _source() -> Synthetic:
    return Synthetic(0, 128 * 20, 64, 64, cardinalities=(3, 40, 120, 300))


def _trained(flags: dict[str, str]) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of twenty steps, and the weights y and averages x after them."""
    small = {"dim": "8", "bottom_mlp": "16-8", "top_mlp": "16-16-1", "qr_threshold": "50", "shampoo_frequency": "3"}
    config = resolve({}, small | flags)
    source = _source()
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), dist.get_world_size(), torch.device("cpu"), dist.group.WORLD)
    reader = Reader(source, "train", batch_size=128, rank=ranks.rank, world_size=ranks.world_size)
    model = build_model(config, source.features, ranks, batch_size=reader.local_batch_size)
    optimizer = build_dense_optimizer(config.optim, model.network, ranks.group)
    averaging = build_averaging(config.optim, optimizer)
    assert averaging is not None
    step, losses = TrainingStep(model, averaging, ranks, "fp32"), []
    with closing(reader.batches(0)) as batches:
        for number, batch in enumerate(batches):
            sums = step(batch, number)
            losses.append(sums.loss / sums.examples)
    named = dict(model.network.named_parameters())
    kept = [*named.values(), *averaging.averages(named).values(), *averaging.tensors(named).values()]
    return losses, [tensor.detach().clone() for tensor in kept]


@pytest.mark.parametrize("optimizer", ["shampoo", "adagrad", "muon"])
def test_ranks_stay_equal_and_take_the_steps_of_one(optimizer: str):
    flags = {"averaging": "gpa", "dense_optimizer": optimizer, "shampoo_epsilon": "0.01"}
    [(alone, _)] = run_ranks(_trained, 1, flags)
    (losses, tensors), (others, other_tensors) = run_ranks(_trained, 2, flags)
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(tensors, other_tensors, strict=True))
    assert losses == pytest.approx(alone, rel=2e-5)  # sums in another order, amplified by roots: test_ranks_agree.py


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--averaging", "none", "--averaging-horizon", "9"],
            "optim.averaging_horizon = 9 needs optim.averaging = gpa or ema, not none",
        ),
        (["--averaging", "ema", "--averaging-mu-y", "0.5"], "optim.averaging_mu_y = 0.5 needs"),
        (["--averaging", "gpu"], "did you mean 'gpa'?"),
    ],
)
def test_settings_that_do_nothing_are_refused(flags: list[str], message: str):
    done = in_process("train", *SMALL, *flags)
    assert done.status == 2
    assert message in done.err


def test_the_point_of_gradients_follows_from_the_kind_of_averaging():
    network = torch.nn.Linear(2, 2)

    def mu_y(**settings: str | float) -> float:
        optim = Config.of(**settings).optim
        averaging = build_averaging(optim, build_dense_optimizer(optim, network, None))
        assert averaging is not None
        return averaging.train_interp_coeff

    follows = {kind: mu_y(averaging=kind) for kind in ("gpa", "ema", "schedule-free")}
    assert follows == {"gpa": 0.7, "ema": 0.0, "schedule-free": 0.9}
    assert mu_y(averaging="schedule-free", averaging_mu_y=0.5) == 0.5
