from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from dlrmctl.errors import UserError
from dlrmctl.settings.config import SECTIONS, Config, ModelSettings, OptimSettings, TrainSettings, resolve
from dlrmctl.settings.embeddings import EmbeddingSettings
from dlrmctl.settings.setting import flag_of, plain_type
from dlrmctl.settings.toml import read_settings, read_toml, write_settings


def test_defaults_are_consistent():
    config = resolve({}, {})
    assert config.optim.dense_lr == 0.004
    assert config.optim.qr_lr == 0.1
    assert resolve({}, {"operation": "add"}).optim.qr_lr == config.optim.sparse_lr == 0.05
    assert resolve({}, {"embedding": "double-hash"}).optim.qr_lr == 0.05
    assert resolve({}, {"operation": "add", "qr_lr": "0.2"}).optim.qr_lr == 0.2
    assert config.optim.shampoo_start == 1
    constant = resolve({}, {"shampoo_schedule": "constant"})
    assert constant.optim.shampoo_start == constant.optim.shampoo_frequency


def test_flags_override_the_file_and_the_file_the_defaults():
    config = resolve({"train": {"batch_size": 512, "seed": 3}}, {"seed": "4"})
    assert (config.train.batch_size, config.train.seed) == (512, 4)


def test_run_toml_gives_the_same_run_back(tmp_path: Path):
    config = resolve({}, {"bottom_mlp": "32-8", "dim": "8", "dense_optimizer": "adamw"})
    write_settings(tmp_path / "run.toml", config.to_dict())
    assert resolve(read_settings(tmp_path / "run.toml"), {}) == config


def test_run_toml_gives_the_tables_back_in_their_order(tmp_path: Path):
    tables = {"cat_2*": {"embedding": "head", "head_share": 0.5}, "*": {"ways": 2}, "cat_20": {"collisions": 9}}
    config = resolve({"embeddings": {"tables": tables}}, {"compress_ratio": "4x"})
    assert config.embeddings.compress_ratio == 4
    write_settings(tmp_path / "run.toml", config.to_dict())
    again = resolve(read_settings(tmp_path / "run.toml"), {})
    assert again == config
    assert list(again.tables) == list(tables)


def test_every_setting_has_its_own_flag_and_help():
    items = [item for cls in SECTIONS.values() for item in fields(cls)]
    flags = [flag_of(item) for item in items]
    assert len(set(flags)) == len(flags)
    assert all(item.metadata["help"].endswith(".") for item in items)


@pytest.mark.parametrize(
    ("file", "flags", "message", "hint"),
    [
        ({"embeddings": {"collisions": 0}}, {}, "run.toml: embeddings.collisions = 0 must be at least 1", None),
        ({"embedings": {}}, {}, r"run.toml: \[embedings\] is not a section", r"did you mean \[embeddings\]\?"),
        ({"train": {"batchsize": 1}}, {}, "run.toml: train.batchsize is not a setting", "'batch_size'"),
        ({"train": 3}, {}, "train = 3 must be a section", None),
        ({"train": {"batch_size": 2.5}}, {}, "train.batch_size = 2.5 is not a whole number", None),
        ({"train": {"batch_size": True}}, {}, "train.batch_size = true is not a whole number", None),
        ({"train": {"device": "gpu"}}, {}, "train.device = 'gpu' must be one of auto, cpu, cuda", None),
        ({}, {"embedding": "qrr"}, "--embedding = 'qrr' must be one of full, hash, qr,", "did you mean 'qr'"),
        ({}, {"dense_lr": "fast"}, "--dense-lr = 'fast' is not a number", None),
        ({}, {"dense_lr": "nan"}, "--dense-lr = 'nan' is not a number", None),
        ({}, {"dense_lr": "inf"}, "--dense-lr = 'inf' is not a number", None),
        ({}, {"dense_lr": "0,01"}, "--dense-lr = '0,01' is not a number", None),
        ({}, {"bottom_mlp": "512,16"}, "--bottom-mlp = '512,16' is not a list of widths", "512-16"),
        ({}, {"dense_lr": "-1"}, "--dense-lr = -1.0 must be at least 0", None),
        ({}, {"batch_size": str(1 << 53)}, "--batch-size = 9007199254740992 must be at most 16,777,216", None),
        ({}, {"batch_size": "999999999999"}, "--batch-size = 999999999999 must be at most 16,777,216", None),
        ({}, {"evaluations": "1000000000"}, "--evaluations = 1000000000 must be at most 1,000,000", None),
        ({}, {"synthetic_rows": str(1 << 63)}, f"--synthetic-rows = {1 << 63} must be at most 10,000,000,000", None),
        ({}, {"seed": str(1 << 64)}, f"--seed = {1 << 64} must be at most 9,223,372,036,854,775,807", None),
        ({}, {"bottom_mlp": "512-x"}, "--bottom-mlp = 'x' is not a whole number", None),
        ({}, {"bottom_mlp": "512-0-16"}, "--bottom-mlp = 512-0-16 must be at least 1", None),
        ({}, {"dim": "32"}, "ends in 16, but embeddings.dim = 32", "--bottom-mlp 512-256-64-32"),
        ({}, {"dim": "18"}, "embeddings.dim = 18 must be a multiple of 4", "try 20"),
        ({}, {"dim": "12", "bottom_mlp": "12", "operation": "concat"}, "multiple of 8 for operation concat", "try 16"),
        ({}, {"embedding": "kway", "operation": "path"}, "operation = path does not work .* = kway", "path needs qr"),
        ({}, {"embedding": "head", "tail": "qr", "operation": "features"}, "features does not work", "qr, kway or crt"),
        ({}, {"embedding": "crt", "operation": "concat"}, "multiple of 12 .* with 3 tables", "try 24"),
        ({}, {"compress_ratio": "1x"}, "--compress-ratio = 1.0 must be above 1", None),
        ({}, {"compress_ratio": "fourx"}, "--compress-ratio = 'four' is not a number", None),
        (
            {},
            {"compress_ratio": "4", "embedding": "full"},
            "compress_ratio = 4 needs tables that are",
            "--embedding qr",
        ),
        ({}, {"head_share": "1"}, "--head-share = 1.0 must be below 1", None),
        ({"embeddings": {"tables": 3}}, {}, "run.toml: embeddings.tables = 3 must be sections", None),
        ({"embeddings": {"tables": {"a": 3}}}, {}, r'embeddings.tables."a" = 3 must be a section', None),
        (
            {"embeddings": {"tables": {"cat_3": {"colisions": 4}}}},
            {},
            'run.toml: embeddings.tables."cat_3".colisions is not a setting of one table',
            "did you mean 'collisions'",
        ),
        (
            {"embeddings": {"tables": {"cat_3": {"dim": 4}}}},
            {},
            'tables."cat_3".dim is not a setting of one table',
            "choose from embedding, collisions",
        ),
        (
            {"embeddings": {"tables": {"cat_3": {"embedding": "qrr"}}}},
            {},
            "tables.\"cat_3\".embedding = 'qrr' must be one of full, hash",
            "did you mean 'qr'",
        ),
        ({"embeddings": {"tables": {"*": {"collisions": 0}}}}, {}, r'"\*".collisions = 0 must be at least 1', None),
        ({}, {"top_mlp": "512-2"}, "must end in 1", "512-2-1"),
        (
            {},
            {"shampoo_schedule": "constant", "shampoo_start": "10"},
            "shampoo_start = 10 is before the first refresh",
            "--shampoo-start to 100",
        ),
        ({}, {"decay": "none", "decay_steps": "10"}, "decay_steps = 10 needs a decay", "--decay"),
        ({}, {"momentum": "1"}, "--momentum = 1.0 must be below 1", None),
    ],
)
def test_mistakes_name_the_value_and_its_origin(file: dict, flags: dict, message: str, hint: str | None):
    with pytest.raises(UserError, match=message) as caught:
        resolve(file, flags)
    if hint is not None:
        assert caught.value.hint is not None
        assert __import__("re").search(hint, caught.value.hint)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[train\n", "not valid TOML"), (b"\xff\xfe", "not UTF-8 text"), (None, "no such file")],
)
def test_unreadable_toml_is_one_line(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_toml(path)


def test_a_directory_is_not_a_settings_file(tmp_path: Path):
    with pytest.raises(UserError, match="is a directory"):
        read_toml(tmp_path)


def test_config_is_frozen():
    with pytest.raises(AttributeError):
        Config().train.seed = 1  # type: ignore[misc]


def test_settings_are_the_same_by_name_by_section_and_as_text():
    by_name = Config.of(batch_size=512, dense_optimizer="sgd", bottom_mlp=[32, 16], compress_ratio="4x")
    sections = Config(
        model=ModelSettings(bottom_mlp=(32, 16)),
        embeddings=EmbeddingSettings(compress_ratio=4),
        optim=OptimSettings(dense_optimizer="sgd"),
        train=TrainSettings(batch_size=512),
    )
    texts = {"batch_size": "512", "dense_optimizer": "sgd", "bottom_mlp": "32-16", "compress_ratio": "4"}
    assert by_name == sections == resolve({}, texts)
    assert Config() == Config.of() == resolve({}, {})


def test_what_follows_from_other_settings_follows_again_when_they_change():
    assert Config.of(shampoo_schedule="doubling").optim.shampoo_start == 1
    config = Config.of(shampoo_frequency=50, shampoo_schedule="constant")
    assert (config.optim.qr_lr, config.optim.dense_lr, config.optim.shampoo_start) == (0.1, 0.004, 50)
    other = replace(config, embeddings=replace(config.embeddings, operation="add"))
    assert other.optim.qr_lr == 0.05
    assert (
        config.change(dense_optimizer="sgd", shampoo_frequency=200).optim
        == Config.of(dense_optimizer="sgd", shampoo_frequency=200, shampoo_schedule="constant").optim
    )
    assert config.change(qr_lr=config.optim.qr_lr).change(operation="add").optim.qr_lr == config.optim.qr_lr
    given = config.change(qr_lr=0.2)
    assert given.change(operation="add").optim.qr_lr == 0.2
    assert given.change(operation="add", qr_lr=None).optim.qr_lr == 0.05
    assert "qr_lr" in given.to_dict(derived=False)["optim"]
    assert "dense_lr" not in given.to_dict(derived=False)["optim"]
    assert given.to_dict()["optim"]["dense_lr"] == 0.004


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(train=TrainSettings(batch_size=0)), "train.batch_size = 0 must be at least 1"),
        (lambda: Config(embeddings=EmbeddingSettings(dim=8)), "ends in 16, but embeddings.dim = 8"),
        (lambda: replace(Config(), train=TrainSettings(seed="x")), "train.seed = 'x' is not a whole number"),  # type: ignore[arg-type]
        (lambda: Config(tables={"a": {"ways": 1}}), 'embeddings.tables."a".ways = 1 must be at least 2'),
        (lambda: Config.of(batchsize=1), "batchsize is not a setting"),
        (lambda: Config.of(dense_lr="fast"), "dense_lr = 'fast' is not a number"),
        (lambda: Config().change(decay="none", decay_steps=5), "decay_steps = 5 needs a decay"),
    ],
)
def test_a_config_cannot_be_made_wrong(make: Callable[[], Config], message: str):
    with pytest.raises(UserError, match=message):
        make()


FLOATS = [
    (section, item.name)
    for section, cls in SECTIONS.items()
    for item in fields(cls)
    if plain_type(get_type_hints(cls)[item.name]) is float
]


@pytest.mark.parametrize(("section", "name"), FLOATS)
def test_per_cent_is_read_where_a_setting_is_in_per_cent_and_refused_elsewhere(section: str, name: str):
    assert len(FLOATS) > 10
    if name == "shampoo_overhead":
        assert resolve({}, {name: "5%"}) == resolve({}, {name: "5"})
        return
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} = '0.5%' is not a number"):
        resolve({}, {name: "0.5%"})


def test_settings_of_another_version_are_refused_and_those_without_one_are_read(tmp_path: Path):
    (tmp_path / "mine.toml").write_text("[train]\nseed = 3\n")
    assert resolve(read_settings(tmp_path / "mine.toml"), {}).train.seed == 3
    (tmp_path / "run.toml").write_text('format = "dlrmctl-run/9"\n[train]\nseed = 3\n')
    with pytest.raises(UserError, match=r"run.toml: the format is 'dlrmctl-run/9', this version reads"):
        read_settings(tmp_path / "run.toml")
