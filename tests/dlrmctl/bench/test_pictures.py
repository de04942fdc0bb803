"""Contents of the pictures of benchmarks."""

import re
from pathlib import Path
from typing import Any

from dlrmctl.bench.pictures import draw

ENVIRONMENT = {"threads": 2, "processor": "a processor", "device": "cpu"}


def _spread(median: float) -> dict[str, float]:
    return {"median": median, "fastest": 0.9 * median, "slowest": 1.1 * median}


def _step(*names: str) -> dict[str, Any]:
    variants = {name: {"to_base": _spread(1.0), "floor_share": _spread(0.6)} for name in names}
    return {
        "command": "step",
        "environment": ENVIRONMENT,
        "variants": variants,
        "parts_ms": {"lookup": _spread(3.0), "forward": _spread(8.0)},
    }


def _texts(path: Path) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_the_base_is_not_drawn_against_itself(tmp_path: Path):
    draw(_step("base"), tmp_path / "one.svg")
    assert "Training step against base" not in _texts(tmp_path / "one.svg")
    draw(_step("base", "bf16"), tmp_path / "two.svg")
    texts = _texts(tmp_path / "two.svg")
    assert "Training step against base" in texts
    assert texts.count("base") == 1  # against its floor
    assert texts.count("bf16") == 2


def test_pictures_name_the_machine_the_unit_and_what_bars_are(tmp_path: Path):
    draw(_step("base"), tmp_path / "one.svg")
    texts = _texts(tmp_path / "one.svg")
    assert "dlrmctl bench step, 2 threads of a processor, cpu" in texts
    assert "ms (median and range of rounds)" in texts
