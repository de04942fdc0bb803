"""Benchmark results can be saved, drawn, and compared with earlier ones."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.bench.against import compare, read_result, show_comparison
from tests.dlrmctl.commands import in_process

TINY = ["--bottom-mlp", "16-8", "--top-mlp", "16-1", "--dim", "8", "--batch-size", "64"]
STEP = ["bench", "step", *TINY, "--rounds", "2", "--steps", "2", "--rows-cap", "50"]
PNG, SVG = b"\x89PNG\r\n", b"<?xml"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of `bench step`."""
    path = tmp_path_factory.mktemp("bench") / "step.json"
    done = in_process(*STEP, "-o", path, "--plot", path.with_suffix(".png"))
    assert done.status == 0, done.err
    assert done.err.splitlines()[-2:] == [f"wrote {path}", f"wrote {path.with_suffix('.png')}"]
    return path


def _spreads(tree: Any) -> list[dict[str, float]]:
    if not isinstance(tree, dict):
        return []
    here = [tree] if {"median", "fastest", "slowest"} <= set(tree) else []
    return here + [found for value in tree.values() for found in _spreads(value)]


def _doctored(saved: Path, path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    result = json.loads(saved.read_text())
    change(result)
    path.write_text(json.dumps(result))
    return path


def _wide(result: dict[str, Any]) -> None:
    """Rounds so far apart that no later run lies outside."""
    for figures in _spreads(result):
        figures["fastest"], figures["slowest"] = sorted((0.0, 1e12), reverse=figures["fastest"] > figures["slowest"])


def test_a_result_is_saved_and_drawn(saved: Path):
    result = json.loads(saved.read_text())
    assert result["command"] == "step"
    assert result["settings"]["train"]["batch_size"] == 64
    assert result["environment"]["threads"] >= 1
    assert saved.with_suffix(".png").read_bytes().startswith(PNG)


def _told(saved: Path, earlier: Path) -> tuple[dict[str, Any], str]:
    """What changed from an earlier result to the saved one, and how it is printed."""
    comparison = compare(read_result(earlier, "step"), read_result(saved, "step"))
    with redirect_stdout(io.StringIO()) as out:
        show_comparison(str(earlier), comparison)
    return comparison, out.getvalue()


def test_the_command_compares_with_an_earlier_result(saved: Path, tmp_path: Path):
    def slow(result: dict[str, Any]) -> None:
        _wide(result)
        result["variants"]["base"]["step_ms"] = {"median": 1e6, "fastest": 1e6, "slowest": 1e6}

    earlier = _doctored(saved, tmp_path / "slow.json", slow)
    done = in_process(*STEP, "--against", earlier)
    assert done.status == 0, done.err
    assert f"against {earlier}: " in done.out
    assert "changed beyond the noise" in done.out
    assert "variants, base, step ms" in done.out
    assert "different:" not in done.out


def test_nothing_changed_within_the_noise(saved: Path, tmp_path: Path):
    comparison, text = _told(saved, _doctored(saved, tmp_path / "wide.json", _wide))
    assert (comparison["changes"], comparison["different"]) == ([], [])
    assert "nothing changed beyond the noise" in text


def test_a_slower_and_a_faster_past_are_told(saved: Path, tmp_path: Path):
    def slow(result: dict[str, Any]) -> None:
        _wide(result)
        result["variants"]["base"]["step_ms"] = {"median": 1e6, "fastest": 1e6, "slowest": 1e6}
        result["parts_ms"]["top"] = {"median": 1e-9, "fastest": 1e-9, "slowest": 1e-9}
        result["variants"]["base"]["held_bytes"] *= 2

    comparison, text = _told(saved, _doctored(saved, tmp_path / "slow.json", slow))
    assert {each["figure"]: each["verdict"] for each in comparison["changes"]} == {
        "variants, base, step ms": "faster",
        "parts ms, top": "slower",
        "variants, base, held bytes": "smaller",
    }
    assert "3 of" in text
    assert "figures changed beyond the noise" in text
    assert "the machine itself" not in text


def test_a_machine_that_was_slower_is_told_apart(saved: Path, tmp_path: Path):
    def slow(result: dict[str, Any]) -> None:
        _wide(result)
        result["limits"]["copy_gigabytes_per_second"] = {"median": 1e-9, "fastest": 1e-9, "slowest": 1e-9}

    _, text = _told(saved, _doctored(saved, tmp_path / "slow.json", slow))
    assert "1 of" in text
    assert "limits, copy gigabytes per second" in text
    assert "the machine itself was faster or slower" in text


def test_other_settings_and_another_machine_are_told(saved: Path, tmp_path: Path):
    def other(result: dict[str, Any]) -> None:
        _wide(result)
        result["settings"]["train"]["batch_size"] = 32
        result["environment"]["processor"] = "abacus"
        result["ranks"] = 2

    earlier = _doctored(saved, tmp_path / "other.json", other)
    _, text = _told(saved, earlier)
    assert f"different: train.batch_size = 64 now, 32 in {earlier}" in text
    assert f", abacus in {earlier}" in text
    assert f"different: ranks = 1 now, 2 in {earlier}" in text


def test_another_store_is_told():
    def result(data: str, rows: int, bytes_per_row: float) -> dict[str, Any]:
        return {"store": {"data": data, "train_examples": rows, "bytes_per_row": bytes_per_row}}

    different = compare(result("generated rows", 900, 80.0), result("/data/criteo", 36000, 79.0))["different"]
    assert [(each["what"], each["earlier"], each["now"]) for each in different] == [
        ("store.data", "generated rows", "/data/criteo"),
        ("store.train_examples", 900, 36000),
    ]


def test_no_figure_in_both_is_not_nothing_changed(saved: Path, tmp_path: Path):
    def other(result: dict[str, Any]) -> None:
        for key in [key for key, value in result.items() if key not in ("command", "environment", "options")]:
            del result[key]
        result["another"] = {"median": 1, "fastest": 1, "slowest": 1}

    _, text = _told(saved, _doctored(saved, tmp_path / "other.json", other))
    assert "nothing to compare, no figure with a spread is in both" in text
    assert "nothing changed" not in text


def test_ranges_that_touch_are_no_change_and_errors_are_added_in_squares():
    def result(low: float, high: float, ne: float, error: float) -> dict[str, Any]:
        spread = {"median": low, "fastest": low, "slowest": high}
        return {"step_ms": {"a": spread}, "ne_difference": ne, "ne_difference_se": error}

    assert compare(result(1, 2, 0, 1), result(2, 3, 2, 1))["changes"] == []  # 2 of 2 x 1.41
    changes = compare(result(1, 2, 0, 1), result(2.1, 3, 3, 1))["changes"]
    assert [(each["figure"], each["verdict"]) for each in changes] == [
        ("step ms, a", "slower"),
        ("ne difference", "worse"),
    ]
    higher = {"floor_share": {"median": 0.5, "fastest": 0.6, "slowest": 0.4}}
    lower = {"floor_share": {"median": 0.2, "fastest": 0.3, "slowest": 0.1}}
    (change,) = compare(higher, lower)["changes"]
    assert (change["verdict"], change["earlier"], change["now"]) == ("worse", 0.5, 0.2)


def test_bench_all_is_one_result_and_one_picture(tmp_path: Path):
    path, drawing = tmp_path / "all.json", tmp_path / "all.svg"
    parts = ["step", "shampoo"]
    arguments = [*TINY, "--shampoo-frequency", "3", "--only", ",".join(parts), "--quick"]
    done = in_process("bench", "all", *arguments, "-o", path, "--plot", drawing)
    assert done.status == 0, done.err
    result = json.loads(path.read_text())
    assert list(result["results"]) == parts
    assert [each["command"] for each in result["results"].values()] == parts
    assert "medium" in result["results"]["step"]["variants"]
    assert drawing.read_bytes().startswith(SVG)
    for title in ("limits of the machine", "parts of shampoo's step"):
        assert title in done.out
    # The parts are the commands' own results.
    part = tmp_path / "shampoo.json"
    part.write_text(json.dumps(result["results"]["shampoo"]))
    again = in_process("bench", "shampoo", *TINY, "--shampoo-frequency", "3", "--quick", "--against", part, "--json")
    assert again.status == 0, again.err
    assert again.json()["against"]["different"] == []
