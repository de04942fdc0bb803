"""Options of benchmarks are checked before the measurement; messages name the typed value."""

import pytest

from dlrmctl.bench.measurements import step_variants
from dlrmctl.errors import UserError
from tests.dlrmctl.commands import in_process


def test_every_variant_differs_in_one_setting():
    lists = {"precision": "fp32,bf16", "embedding": "full,qr", "dense_optimizer": "sgd", "batch_size": "64,128"}
    configs = step_variants({"batch_size": "64"}, lists)
    assert list(configs) == ["base", "bf16", "full", "sgd", "batch 128"]
    base = configs["base"]
    assert configs["sgd"].train == base.train
    assert (configs["sgd"].optim.dense_lr, base.optim.dense_lr) == (0.1, 0.004)  # what follows from it follows
    assert configs["batch 128"].train.batch_size == 128
    with pytest.raises(UserError, match="fp64"):
        step_variants({}, {"precision": "fp64"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--rounds", "0"], "--rounds = 0 must be at least 1"),
        (["step", "--rows-cap", "many"], "--rows-cap = 'many' is not a whole number"),
        (
            ["step", "--precisions", "fp32,fp8"],
            "--precisions: train.precision = 'fp8' must be one of fp32",
        ),
        (["step", "--embeddings", "ful"], "--embeddings: embeddings.embedding = 'ful' must be one of"),
        (["step", "--optimizers", "adm"], "--optimizers: optim.dense_optimizer = 'adm' must be one of"),
        (["step", "--batch-sizes", "256,x"], "--batch-sizes: train.batch_size = 'x' is not a whole number"),
        (["step", "--batch-sizes", "256,,128"], "--batch-sizes = '256,,128' has an empty value"),
        (["step", "--precisions", ""], "--precisions = '' has an empty value"),
        (["step", "--batch-sizes", "64,64"], "--batch-sizes = '64,64' names 64 twice"),
        (
            ["step", "--batch-sizes", "64,65", "--nproc", "2"],
            "train.batch_size = 65 cannot be split equally over 2 ranks",
        ),
        (["shampoo", "--periods", "-1"], "--periods = -1 must be at least 1"),
        (["convergence", "--seeds", "0"], "--seeds = 0 must be at least 1"),
        (["data", "--rounds", "x"], "--rounds = 'x' is not a whole number"),
        (["all", "--only", "step,everything"], "--only = 'everything' must be one of step, shampoo, convergence"),
        (["convergence", "--optimizers", "adagard"], "--optimizers = 'adagard' must be one of"),
        (["convergence", "--lrs", "0.1,fast"], "--lrs = 'fast' is not a number"),
        (["embeddings", "--methods", "full,qrr"], "--methods qrr: embeddings.embedding = 'qrr' must be one of"),
        (["convergence", "--optimizers", "sgd,adagrad,sgd"], "--optimizers = 'sgd,adagrad,sgd' names sgd twice"),
        (["convergence", "--lrs", "0.1,0.10"], "--lrs = '0.1,0.10' names 0.1 twice"),
        (["convergence", "--lrs", "0,-1"], "--lrs = '0,-1' must all be above 0"),
        (["convergence", "--lrs", "0.1,"], "--lrs = '0.1,' has an empty value"),
        (["all", "--only", "step,step"], "--only = 'step,step' names step twice"),
        (["embeddings", "--methods", "qr,full,qr"], "--methods = 'qr,full,qr' names qr twice"),
        (["embeddings", "--factors", "1,1"], "--factors = '1,1' names 1 twice"),
        (["embeddings", "--factors", "1,0"], "--factors = '1,0' must all be above 0"),
        (["embeddings", "--methods", "qr:add"], "--methods: 'add' of 'qr:add' is not a setting and its value"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str):
    done = in_process("bench", *arguments)
    assert done.status == 2
    assert f"error: {message}" in done.err


def test_a_batch_of_a_list_that_ranks_cannot_share_has_no_hint_of_another_option():
    done = in_process("bench", "step", "--batch-sizes", "64,65", "--nproc", "2")
    assert done.status == 2
    assert "hint" not in done.err
    assert "hint: --batch-size 66" in in_process("bench", "step", "--batch-size", "65", "--nproc", "2").err
