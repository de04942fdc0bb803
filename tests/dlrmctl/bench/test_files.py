"""Files of benchmarks: problems are reported before the measurement, and no result is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.bench.delivery import Delivery
from dlrmctl.data.errors import DataError
from tests.dlrmctl.commands import Done, in_process

STEP = ["bench", "step", "--rounds", "2", "--steps", "2", "--rows-cap", "50"]
# A result but for what is put in.
_SHAPE = '{"command": "step", "environment": {}, "options": {}, %s}'
# As much of a result as pictures and comparisons look at.
_SHAMPOO = {
    "ratio_to_adagrad": {"shampoo": {"median": 1.5, "fastest": 1.4, "slowest": 1.6}},
    "parts_ms": {"roots": 0.5},
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, ": cannot read: no such file"),
        ("rows 12", " is not JSON, so not a benchmark result"),
        ("[1, 2]", " is not a benchmark result"),
        ('{"command": 5, "environment": {}, "options": {}}', " is not a benchmark result"),
        ('{"command": "step", "environment": {}}', " is not a benchmark result: it has no options"),
        (
            '{"command": "step", "environment": {}, "options": 5}',
            " is not a benchmark result: its options = 5 must be an object with names",
        ),
        (_SHAPE % '"settings": [1]', " is not a benchmark result: its settings = [1] must be an object with names"),
        (_SHAPE % '"results": [1]', " is not a benchmark result: its results = [1] must be an object with names"),
        (
            _SHAPE % '"results": {"step": 1}',
            " is not a benchmark result: its results.step = 1 must be an object with names",
        ),
        (
            _SHAPE % '"results": {"step": {"options": {}}}',
            " is not a benchmark result: it has no results.step.environment",
        ),
        (_SHAPE % '"parts_ms": {}', " has no figure with a spread to compare with"),
        ("[" * 200_000, " is not JSON"),
        ('{"command": "data", "environment": {}}', " is a result of `bench data`, not of `bench step`"),
    ],
)
def test_what_is_no_such_result_is_one_line(tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "result.json"
    if text is not None:
        path.write_text(text)
    assert _is_one_line(in_process(*STEP, "--against", path), f"{path}{message}")


def test_files_that_cannot_be_written_are_one_line_before_the_work(tmp_path: Path):
    nowhere = tmp_path / "nowhere"
    assert _is_one_line(in_process(*STEP, "-o", nowhere / "a.json"), f"{nowhere}: no such directory")
    assert _is_one_line(in_process(*STEP, "-o", tmp_path), "is a directory; --out takes a file")
    assert _is_one_line(in_process(*STEP, "--plot", tmp_path / "a.txt"), "a picture must end in .png or .svg")
    assert _is_one_line(in_process(*STEP, "-o", "/proc/a.json"), "/proc/a.json: cannot write: no such file")
    same = tmp_path / "a.png"
    assert _is_one_line(in_process(*STEP, "-o", same, "--plot", same), "--out and --plot name the same file")
    assert not same.exists()
    assert _is_one_line(in_process(*STEP, "--trace", nowhere / "a.json"), f"{nowhere}: no such directory")
    assert _is_one_line(in_process(*STEP, "--trace", tmp_path), "is a directory; --trace takes a file")
    assert _is_one_line(in_process(*STEP, "--trace", "/dev/full"), "/dev/full is not a file")
    assert _is_one_line(in_process(*STEP, "--trace", same, "-o", same), "--trace and --out name the same file")


def test_a_hint_never_names_the_file_that_is_refused(tmp_path: Path):
    (tmp_path / "kept.json").write_text("[]")
    assert "kept.json" not in in_process(*STEP, "--against", tmp_path / "kept.json").err.split("hint: ")[1]


def test_a_result_is_shown_before_its_files_and_a_file_may_be_both_old_and_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    old, drawing = tmp_path / "shampoo.json", tmp_path / "shampoo.png"
    old.write_text(json.dumps({"command": "shampoo", "environment": {}, "options": {}, **_SHAMPOO}))
    delivery = Delivery("shampoo", True, old, drawing, old)
    assert not drawing.exists()
    old.unlink()
    old.mkdir()  # after the check
    with pytest.raises(DataError, match="cannot write: is a directory"):
        delivery.deliver(_SHAMPOO, lambda _: None, {})
    answer = json.loads(capsys.readouterr().out)
    assert answer["parts_ms"] == _SHAMPOO["parts_ms"]
    assert (answer["against"]["compared"], answer["against"]["changes"]) == (1, [])
    assert drawing.read_bytes().startswith(b"\x89PNG")  # one failed file does not take the other with it


def test_a_result_replaces_a_link_and_leaves_what_it_led_to(tmp_path: Path):
    kept, out = tmp_path / "kept.txt", tmp_path / "result.json"
    kept.write_text("kept")
    out.symlink_to(kept)
    Delivery("shampoo", True, out, None, None).deliver(_SHAMPOO, lambda _: None, {})
    assert kept.read_text() == "kept"
    assert not out.is_symlink()
    assert json.loads(out.read_text())["command"] == "shampoo"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.txt", "result.json"]


@pytest.mark.parametrize("name", ["pipe", "/dev/stdout", "/dev/fd/1", "/dev/null"])
def test_a_result_goes_to_a_pipe_or_a_stream_as_it_is(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / "pipe")
    program = [
        *("import sys", "from pathlib import Path", "from dlrmctl.bench.delivery import Delivery"),
        f"Delivery('shampoo', False, Path({name!r}), None, None).deliver({_SHAMPOO}, lambda _: print('shown'), {{}})",
    ]
    command = [sys.executable, "-P", "-c", "\n".join(program)]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(command, stdout=out, cwd=tmp_path)
        read = (tmp_path / "pipe").read_text() if name == "pipe" else ""
        assert process.wait(60) == 0
    shown, _, rest = (tmp_path / "out").read_text().partition("shown\n")
    assert shown == ""
    result = {"pipe": read, "/dev/null": None}.get(name, rest)
    assert result is None or json.loads(result)["command"] == "shampoo"
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()
    assert not Path("/dev/stdout").is_file() or Path("/dev/stdout").is_symlink()


def test_a_closed_pipe_does_not_take_the_file_with_it(tmp_path: Path):
    def closed(_: dict[str, Any]) -> None:
        raise BrokenPipeError

    delivery = Delivery("shampoo", False, tmp_path / "kept.json", None, None)
    with pytest.raises(BrokenPipeError):
        delivery.deliver(_SHAMPOO, closed, {})
    assert json.loads((tmp_path / "kept.json").read_text())["parts_ms"] == _SHAMPOO["parts_ms"]


def _is_one_line(done: Done, message: str) -> bool:
    errors = [line for line in done.err.splitlines() if not line.startswith("hint: ")]
    return done.status == 2 and len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]
