"""README and docs: their commands work, the maps are the tree, what they name exists, the references are current."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dlrmctl.cli.app import whole_application
from dlrmctl.settings.config import SECTIONS, resolve
from tests.dlrmctl.commands import Done, in_process, run_as_ranks

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
ROOMS = ("dlrmctl", "data", "embeddings", "models", "optim")
PAGES = {"README.md": README} | {
    str(path.relative_to(ROOT)): path.read_text() for path in sorted(DOCS.rglob("*.md")) if path.parent.name == "docs"
}
RUN, CHECK = "<!-- run -->", "<!-- check -->"
TOUR = (RUN, "<!-- run: afterwards -->")
SETUP = ("<!-- setup: train -->", "<!-- setup: tests -->")


# The first of these tests takes the whole tour, minutes on a busy machine.
pytestmark = pytest.mark.timeout(1200)


@dataclass(frozen=True)
class Block:
    """A block of code: its language, the line above it, and its own lines without the indentation of the fence."""

    language: str
    mark: str
    lines: tuple[str, ...]


@cache
def _blocks(page: str) -> list[Block]:
    blocks, lines = [], PAGES[page].splitlines()
    number = 0
    while number < len(lines):
        if fence := re.fullmatch(r"( *)```(\w*)", lines[number]):
            end = lines.index(fence[1] + "```", number + 1)
            inside = tuple(line.removeprefix(fence[1]) for line in lines[number + 1 : end])
            blocks.append(Block(fence[2], lines[number - 1].strip(), inside))
            number = end
        number += 1
    return blocks


def _commands(block: Block) -> list[str]:
    """The commands of a block, a here-document with the lines that it takes."""
    commands: list[str] = []
    lines = iter(block.lines)
    for line in lines:
        if "<<'EOF'" in line:
            document = [line]
            while document[-1] != "EOF":
                document.append(next(lines))
            line = "\n".join(document)
        if line.strip():
            commands.append(line)
    return commands


def _marked(page: str, *marks: str) -> list[str]:
    return [c for block in _blocks(page) if block.language == "bash" and block.mark in marks for c in _commands(block)]


def _only_checked() -> list[str]:
    """The commands that are too long to run here, and those whose output a page shows."""
    shown = [
        line.removeprefix("$ ")
        for page in PAGES
        for block in _blocks(page)
        if block.language == "console"
        for line in block.lines
        if line.startswith("$ ")
    ]
    marked = [command for page in PAGES for command in _marked(page, CHECK, *SETUP)]
    parts = [part.strip() for command in shown + marked for part in command.split("&&")]
    return sorted({part for part in parts if re.search(r"(^|--no-python )dlrmctl ", part)})


def _in_shell(command: str, directory: Path) -> Done:
    # The installed command stands beside the interpreter that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Done(ended.returncode, ended.stdout, ended.stderr)


def _run(command: str, directory: Path) -> Done:
    """Runs a command, if it is one of ours, in this process or in copies of it; .ci/run takes the tour in new ones."""
    if not command.startswith("dlrmctl "):
        return _in_shell(command, directory)
    words = shlex.split(command)[1:]
    if "--nproc" in words and words[0] != "plan":
        place = words.index("--nproc")
        _, ranks = words.pop(place), int(words.pop(place))
        return run_as_ranks(ranks, *words, cwd=directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        return in_process(*words)


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory after the README's tour, which begins with a `train.txt`; and files that the pages begin with."""
    directory = tmp_path_factory.mktemp("tour")
    made = in_process("data", "synthesize", "--rows", "2600", "-o", directory / "train.txt")
    assert made.status == 0, made.err
    for command in _marked("README.md", *TOUR):
        done = _run(command, directory)
        assert done.status == 0, f"{command}\n{done.err}"
        assert done.out.strip() or command.startswith("dlrmctl plot"), command  # a picture is its answer
    for number in (1, 2):
        rows = [f"{n % 3 // 2},{n / 4},{20 + n % 50},book-{n % 17},drama|crime" for n in range(400)]
        (directory / f"visits-{number}.csv").write_text("\n".join(["clicked,price,age,item,genres", *rows]) + "\n")
    return directory


def test_the_tour_works_from_raw_files_to_torchrun(tour: Path):
    for run in ("first", "small-tables", "two-ranks", "torchrun"):
        assert (tour / "runs" / run / "results.json").exists()
    for run in ("two-ranks", "torchrun"):
        assert json.loads((tour / "runs" / run / "environment.json").read_text())["world_size"] == 2
    for picture in ("curves", "calibration", "frontier", "frequencies", "step"):
        assert (tour / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md" and _marked(page, RUN)])
def test_the_commands_of_a_page_work(page: str, tour: Path):
    for command in _marked(page, RUN):
        done = _run(command, tour)
        assert done.status == 0, f"{command}\n{done.err}"


@cache
def _application() -> Any:
    return typer.main.get_command(whole_application())


@pytest.mark.parametrize("command", _only_checked())
def test_the_options_of_a_command_that_is_not_run_exist(command: str):
    words = shlex.split(command.split("dlrmctl ", 1)[1])
    target = _application()
    while hasattr(target, "commands"):
        target = target.commands[words.pop(0)]
    given = target.make_context("dlrmctl", words).params
    settings = {key for cls in SECTIONS.values() for key in cls.__dataclass_fields__}
    flags = {key: value for key, value in given.items() if key in settings and value is not None}
    if flags.get("embedding") != "qrr":  # the mistake that a page shows
        resolve({}, flags)


def test_an_error_that_a_page_shows_is_what_is_printed():
    errors = [b for page in PAGES for b in _blocks(page) if len(b.lines) > 1 and b.lines[1].startswith("error: ")]
    assert errors
    for block in errors:
        done = in_process(*shlex.split(block.lines[0])[2:])
        assert done.status == 2
        assert done.err.split() == " ".join(block.lines[1:]).split()


def test_every_shell_block_says_how_it_is_tested():
    for page in PAGES:
        for block in _blocks(page):
            if block.language == "bash":
                allowed = (*TOUR, *SETUP) if page == "README.md" else (RUN, CHECK)
                assert block.mark in allowed, f"{page}: a line above {block.lines[0]!r} must be one of {allowed}"


def test_set_up_commands_are_single_lines_that_ci_can_find():
    assert _marked("README.md", SETUP[0])[0].endswith("dlrmctl train --dataset synthetic")
    assert _marked("README.md", SETUP[1])[0].endswith("pytest")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 220


def test_the_maps_name_the_folders():
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"}
    everything = sorted([*(folder.name for folder in folders), "tests", "shims", "docs"])
    full = PAGES["docs/architecture.md"].split("## The map")[1].split("```")[1]
    assert sorted(re.findall(r"^ *([a-z]+)/", full, re.MULTILINE)) == everything
    lines = [line for line in README.split("## The map")[1].split("\n## ")[0].splitlines() if line.startswith("    ")]
    named = re.findall(r"([a-z]+)/", " ".join(lines))
    assert set(named) <= set(everything)
    assert set(named) >= {*ROOMS, *(folder.name for folder in folders if folder.parent.name == "dlrmctl")}
    assert len(lines) <= 17


@pytest.mark.parametrize("page", PAGES)
def test_files_modules_and_links_that_are_named_exist(page: str):
    for name in re.findall(rf"`((?:docs|tests|{'|'.join(ROOMS)})/[\w/]+\.\w+)`", PAGES[page]):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(dlrmctl(?:\.\w+){2,})`", PAGES[page]):
        assert find_spec(name), name
    for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", PAGES[page]):
        assert ((ROOT / page).parent / link).is_file(), link


@pytest.mark.parametrize(
    "snippet", [text for page in PAGES.values() for text in re.findall(r"```python\n(.*?)```", page, re.S)]
)
def test_imports_of_python_snippets_work(snippet: str):
    imports = [node for node in ast.parse(snippet).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    exec("\n".join(map(ast.unparse, imports)), {})


def test_the_references_are_current():
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
