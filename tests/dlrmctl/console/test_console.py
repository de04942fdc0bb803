"""Results and messages go to the current standard streams."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from dlrmctl.console.console import messages, output, print_table, say, show_error, warn
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import number_text, with_error, wrapped
from tests.dlrmctl.commands import in_process


def test_output_follows_the_streams():
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        output.print("an answer")
        say("a message")
        print_table("title", ["", "n"], [["row", "1"]], to=messages)
    with redirect_stderr(io.StringIO()) as later:
        say("another")
    assert out.getvalue() == "an answer\n"
    assert err.getvalue().startswith("a message\ntitle")
    assert later.getvalue() == "another\n"


def test_a_file_gets_lines_at_intervals_and_those_that_are_due_now(capsys: pytest.CaptureFixture[str]):
    with BarDisplay() as display:
        display.begin("reading", 200)
        display.advance(50, "too early")
        display.show("a line is due", now=True)
        display.show(line="another", now=True)
    with BarDisplay(shown=False) as silent:
        silent.show("another rank speaks", now=True)
    assert capsys.readouterr().err == "reading: 25 %, a line is due\nanother\n"


def test_pauses_do_not_count():
    display = BarDisplay()
    with display.pause():
        display._since -= 5  # as if the block had lasted longer
    display._since += 5
    assert display.seconds < 1


def test_errors_stand_beside_their_values():
    assert with_error(0.46312, 0.0012) == "0.4631 ±0.0012"
    assert with_error(0.00012, 0.00001, "+.3f", scale=100) == "+0.012 ±0.001"
    assert with_error(0.5, None) == "0.5000 ±-"
    assert with_error(None, None) == "-"
    assert with_error(-0.00004, 0.00001, "+.3f") == "0.000 ±0.000", "zero has no sign"
    assert number_text(-0.00004) == "0.0000"
    line = "validation: NE 0.84551 -> 0.84596, +0.0537 ±0.0251 %"
    for width in range(30, len(line)):
        for part in wrapped(line, width).split("\n"):
            assert not part.strip().startswith(("±", "%")), part


def test_a_long_value_is_shortened_in_an_error(capsys: pytest.CaptureFixture[str]):
    show_error(f"--dense-lr = '{'7' * 5000}' is not a number", "/some/where/" + "d" * 200)
    shown = capsys.readouterr().err
    assert len(shown) < 400
    assert shown.startswith("error: --dense-lr = '777")
    assert "7' is not a number\n" in shown
    assert "d" * 200 in shown, "a path is whole"


def test_control_signs_in_names_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    hostile = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m\r"
    done = in_process("evaluate", tmp_path / hostile)
    assert done.status == 2
    print_table(hostile, ["name" + hostile, "rows"], [[f"a\n{hostile}", "1"]])
    warn(hostile)
    say(hostile)
    shown = done.err + "".join(capsys.readouterr())
    assert "\\x1b]0;owned\\x07\\x1b[2J\\u202egnp.exe\\x9b31m" in shown
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\x9b", "\r"}
    assert "a\\n" in shown
