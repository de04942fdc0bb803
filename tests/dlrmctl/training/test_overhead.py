from pathlib import Path

from dlrmctl.settings.config import resolve
from dlrmctl.settings.toml import read_settings
from dlrmctl.training.overhead import OverheadChoice, pick
from tests.dlrmctl.commands import SMALL, in_process


def test_the_freshest_choice_inside_the_budget_is_taken():
    fresh = OverheadChoice(sides=2, block=128, statistics_every=1, refresh_every=10, overhead=0.09)
    stale = OverheadChoice(sides=2, block=128, statistics_every=4, refresh_every=100, overhead=0.04)
    staler = OverheadChoice(sides=2, block=256, statistics_every=4, refresh_every=200, overhead=0.03)
    assert pick([staler, fresh, stale], 0.10) == fresh
    assert pick([staler, fresh, stale], 0.05) == stale


def test_larger_blocks_win_where_the_rest_is_equal():
    small = OverheadChoice(sides=2, block=64, statistics_every=1, refresh_every=10, overhead=0.01)
    large = OverheadChoice(sides=2, block=256, statistics_every=1, refresh_every=10, overhead=0.02)
    assert pick([small, large], 0.05) == large


def test_one_side_is_taken_only_where_both_do_not_fit():
    both = OverheadChoice(sides=2, block=64, statistics_every=32, refresh_every=1000, overhead=0.04)
    one = OverheadChoice(sides=1, block=256, statistics_every=1, refresh_every=10, overhead=0.03)
    assert pick([one, both], 0.05) == both
    assert pick([one, both], 0.035) == one


def test_the_cheapest_is_taken_where_none_is_inside_the_budget():
    cheap = OverheadChoice(sides=2, block=64, statistics_every=32, refresh_every=1000, overhead=0.07)
    dear = OverheadChoice(sides=2, block=256, statistics_every=1, refresh_every=10, overhead=2.0)
    assert pick([dear, cheap], 0.05) == cheap


def test_the_first_steps_may_cost_more_than_the_run_but_not_any_amount():
    lively = OverheadChoice(2, 128, statistics_every=4, refresh_every=20, overhead=0.08, early=0.3)
    calm = OverheadChoice(2, 128, statistics_every=4, refresh_every=100, overhead=0.05, early=0.2)
    assert pick([lively, calm], 0.10) == calm
    assert pick([lively, calm], 0.13) == lively


def test_doubling_is_probed_with_its_early_refreshes(tmp_path: Path):
    path = tmp_path / "run"
    arguments = ["--synthetic-rows", "2000", "--shampoo-overhead", "1000%", "--shampoo-schedule", "doubling"]
    done = in_process("train", *SMALL, *arguments, "--run-dir", path)
    assert done.status == 0, done.err
    assert "% in the first 200" in done.err
    stored = resolve(read_settings(path / "run.toml"), {}).optim
    assert (stored.shampoo_schedule, stored.shampoo_start) == ("doubling", 1)


def test_what_the_probe_chose_is_in_run_toml_and_not_probed_again(tmp_path: Path):
    path = tmp_path / "run"
    arguments = ["--synthetic-rows", "2000", "--shampoo-overhead", "1000%", "--run-dir", path]
    done = in_process("train", *SMALL, *arguments)
    assert done.status == 0, done.err
    assert "-sided blocks of" in done.err
    stored = resolve(read_settings(path / "run.toml"), {}).optim
    assert stored.shampoo_overhead is None
    # Ten times the step is room for everything, so the probe takes the freshest there is.
    assert (stored.shampoo_sides, stored.shampoo_block) == (2, 256)
    assert (stored.shampoo_frequency, stored.shampoo_statistics) == (10, 1)
    again = in_process("train", "--resume", path, "--epochs", "2")
    assert again.status == 0, again.err
    assert "-sided blocks of" not in again.err


def test_a_budget_for_another_optimizer_is_refused():
    done = in_process("train", *SMALL, "--dense-optimizer", "sgd", "--shampoo-overhead", "5")
    assert done.status == 2
    assert "optim.shampoo_overhead = 5 needs optim.dense_optimizer = shampoo, not sgd" in done.err
