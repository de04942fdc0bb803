"""Settings that were not given follow from the data, on any number of ranks."""

from pathlib import Path

import pytest

from dlrmctl.assembly.optimizers import build_schedule, default_warmup
from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config, batch_for, resolve, section_of
from dlrmctl.settings.toml import read_run_settings, read_settings, write_settings


@pytest.mark.parametrize(
    ("examples", "batch"),
    [(100, 64), (10_000, 64), (85_000, 128), (110_000, 256), (1_000_000, 2048), (40_000_000, 2048), (10**10, 2048)],
)
def test_the_batch_is_a_power_of_two_near_a_five_hundredth_of_the_examples(examples: int, batch: int):
    assert Config.of(path="store").fitted(examples, 1).train.batch_size == batch


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_the_batch_is_the_same_on_1_2_4_and_8_ranks(ranks: int):
    assert batch_for(10_000, ranks) == 64
    assert batch_for(10_000_000, ranks) == 2048


@pytest.mark.parametrize("ranks", [3, 5, 6, 7, 96])
def test_on_other_numbers_of_ranks_it_can_be_cut(ranks: int):
    assert batch_for(10_000, ranks) % ranks == 0
    assert 64 <= batch_for(10_000, ranks) < 64 + ranks


def test_what_was_given_stays_and_is_refused_where_it_cannot_be_cut():
    config = Config.of(path="store", batch_size=100)
    assert config.fitted(10**9, 4).train.batch_size == 100
    with pytest.raises(UserError, match="batch_size = 100 cannot be split equally over 3 ranks"):
        config.fitted(10**9, 3)
    # Also a value that equals what would have followed.
    assert Config.of(path="store", batch_size=2048).fitted(10_000, 1).train.batch_size == 2048


def test_auto_is_written_like_a_number():
    typed = resolve({}, {"batch_size": "auto", "epochs": "Auto", "path": "store"})
    assert typed == Config.of(path="store")
    from_file = resolve({"train": {"batch_size": "auto", "epochs": "auto"}, "data": {"path": "store"}}, {})
    assert from_file == Config.of(path="store")
    # A flag takes a number of the file back.
    assert resolve({"train": {"epochs": 3}}, {"epochs": "auto", "path": "store"}).train.epochs is None
    with pytest.raises(UserError, match="--log-every"):
        resolve({}, {"log_every": "auto"})


def test_the_settings_of_a_run_repeat_it_whatever_followed():
    config = Config.of(path="store").fitted(85_000, 1)
    again = resolve(config.to_dict(), {})
    assert again == config
    assert again.fitted(10**9, 1).train.batch_size == config.train.batch_size


def test_generated_data_is_passed_once_and_own_data_as_often_as_it_helps():
    assert Config.of(dataset="synthetic").train.epochs == 1
    own = Config.of(path="store")
    assert own.train.epochs is None
    # As many epochs pass without a gain, however often a run evaluates.
    assert own.change(evaluations=40).train.patience == 10 * own.change(evaluations=4).train.patience > 0
    assert own.change(epochs=3).train.patience == 0


def test_a_decay_to_the_end_needs_an_end():
    with pytest.raises(UserError, match="no planned end") as found:
        Config.of(path="store", decay="cosine")
    assert "--epochs" in str(found.value.hint)
    Config.of(path="store", decay="cosine", decay_steps=1000)
    Config.of(path="store", decay="cosine", epochs=1)


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 0), (100, 10), (500, 50), (1_000, 50), (4_000, 200), (20_000, 1_000), (10**6, 1_000)]
)
def test_warmup_is_a_twentieth_with_a_floor_and_never_more_than_a_tenth(steps: int, warmup: int):
    assert default_warmup(steps) == warmup
    assert build_schedule(Config.of(dataset="synthetic"), steps).warmup_steps == warmup
    assert build_schedule(Config.of(dataset="synthetic", warmup_steps=7), steps).warmup_steps == 7


def test_the_settings_of_a_run_of_an_earlier_version_keep_their_meaning(tmp_path: Path):
    then = {"dense_inputs": "raw", "averaging": "none", "shampoo_schedule": "constant"}
    config = Config.of(dataset="synthetic", batch_size=2048, decay="cosine", qr_threshold=200, dense_lr=0.01, **then)
    sections = config.to_dict()
    for name in then:  # settings that it did not have
        del sections[section_of(name)][name]
    write_settings(tmp_path / "run.toml", sections)
    for read in (read_run_settings, read_settings):  # to resume it, and for --config
        assert resolve(read(tmp_path / "run.toml"), {}) == config
    (tmp_path / "mine.toml").write_text("[model]\ntop_mlp = [8, 1]\n[optim]\ndense_lr = 0.01\n")
    mine = resolve(read_settings(tmp_path / "mine.toml"), {})
    assert {name: getattr(getattr(mine, section_of(name)), name) for name in then} == {
        "dense_inputs": "auto",
        "averaging": "gpa",
        "shampoo_schedule": "doubling",
    }
