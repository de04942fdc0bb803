"""A preparation that was killed, interrupted or out of space continues, and gives the same store."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.criteo import CriteoInput
from dlrmctl.data.formats.raw import Input
from dlrmctl.data.formats.table_schema import read_schema
from dlrmctl.data.formats.tables import TableInput
from dlrmctl.data.preparation.options import PrepareOptions
from dlrmctl.data.preparation.prepare import prepare
from dlrmctl.data.preparation.report import PrepareProgress, PrepareReport
from dlrmctl.data.preparation.unfinished import clear
from dlrmctl.data.store.store import Store
from tests.data.criteo_files import make_rows, write

PHASES = ("parse", "encode", "write")


def prepare_small(
    paths: list[Path], out: Path, progress: Any = None, part_rows: int = 32, piece_bytes: int = 400, **changes: Any
) -> PrepareReport:
    """In many small steps, each of which is journaled."""
    options = PrepareOptions(**{"block_rows": 16, "sample_negatives": 0.5, "raw_sample": 20, **changes})
    input: Input = CriteoInput(paths, piece_bytes=4000)
    if paths[0].suffix == ".csv":
        schema = read_schema({"label": "clicked", "sparse": ["user", "page"]}, "my.toml")
        input = TableInput(schema, paths, split=options.split, piece_bytes=piece_bytes)
    return prepare(input, out, options, progress, workers=2, part_rows=part_rows, most_in_memory=25, save_seconds=0)


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def _prepare_and_die(paths: list[Path], out: Path, event: str, number: int, changes: dict[str, Any]) -> None:
    """Kills itself at an event: progress in a phase, a file that reaches the disk, a directory that goes."""
    left = number

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(call: Any) -> Any:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            count()
            return call(*arguments, **more)

        return wrapped

    def progress(told: PrepareProgress) -> None:
        if told.phase == event:
            count()

    if event == "sync":
        os.fsync = before(os.fsync)
    elif event == "remove":
        shutil.rmtree = before(shutil.rmtree)
    prepare_small(paths, out, progress, **changes)
    assert left > 0


def kill_at(paths: list[Path], out: Path, event: str, number: int, **changes: Any) -> int:
    """The exit status of a process that was to be killed at an event."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dlrmctl.data.preparation.prepare", "dlrmctl.data.formats.criteo"])
    process = context.Process(target=_prepare_and_die, args=(paths, out, event, number, changes))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("raw")
    return [write(directory / name, make_rows(70, seed)) for seed, name in enumerate(("day_0", "day_1.gz"))]


@pytest.fixture(scope="module")
def uninterrupted(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "store"
    prepare_small(sources, out)
    return content(out)


@pytest.mark.parametrize(
    ("event", "number"),
    [("parse", 1), ("parse", 4), ("encode", 1), ("encode", 77), ("encode", 200), ("write", 1), ("write", 4)]
    + [("sync", number) for number in (1, 2, 3, 4, 6, 11, 20, 30, 57, 130, 183)]
    + [("remove", 1), ("remove", 2)],
)
def test_a_killed_preparation_goes_on_and_makes_the_same_bytes(
    sources: list[Path], uninterrupted: dict[str, bytes], tmp_path: Path, event: str, number: int
) -> None:
    out = tmp_path / "store"
    assert kill_at(sources, out, event, number) == -signal.SIGKILL
    if event != "remove":
        assert not out.exists()
        with pytest.raises(DataError, match=r"no manifest\.json, so not a store"):
            Store(tmp_path / "store.partial")
    report = prepare_small(sources, out)
    assert report.rows == 140
    assert content(out) == uninterrupted
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(("event", "number"), [("encode", 40), ("encode", 150), ("write", 2), ("sync", 90)])
def test_a_killed_extension_of_a_store_makes_the_same_bytes(
    sources: list[Path], tmp_path: Path, event: str, number: int
) -> None:
    before, whole, killed = tmp_path / "before", tmp_path / "whole", tmp_path / "killed"
    prepare_small(sources[:1], before, keep_rare=True)
    prepare_small(sources[1:], whole, extend=before)
    assert kill_at(sources[1:], killed, event, number, extend=before) == -signal.SIGKILL
    prepare_small(sources[1:], killed, extend=before)
    assert content(killed) == content(whole)


@pytest.mark.parametrize(
    ("event", "number"), [("parse", 9), ("encode", 20), ("write", 2), *[("sync", number) for number in (9, 23, 33, 36)]]
)
def test_a_killed_preparation_of_a_table_has_the_same_texts(tmp_path: Path, event: str, number: int) -> None:
    lines = [f"{i % 2},user {i % 31},{(i * i) % 60 if i % 3 else f'https://example.com/{i % 40}'}" for i in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(["clicked,user,page", *lines, ""]))
    prepare_small([tmp_path / "t.csv"], tmp_path / "whole")
    assert kill_at([tmp_path / "t.csv"], tmp_path / "store", event, number) == -signal.SIGKILL
    prepare_small([tmp_path / "t.csv"], tmp_path / "store")
    expected = content(tmp_path / "whole")
    assert "vocabulary/page.texts" in expected
    assert content(tmp_path / "store") == expected


def test_a_preparation_that_is_killed_again_and_again_ends(
    sources: list[Path], uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    kills = 0
    while kill_at(sources, out, "sync", 3 + 2 * kills) != 0:  # later steps need more of them
        kills += 1
    assert kills > 8
    assert content(out) == uninterrupted


def test_what_was_done_before_is_not_done_again(sources: list[Path], tmp_path: Path) -> None:
    for phase, number in [("encode", 100), ("write", 5)]:
        out = tmp_path / phase
        assert kill_at(sources, out, phase, number) == -signal.SIGKILL
        told: list[PrepareProgress] = []
        prepare_small(sources, out, told.append)
        first = next(progress for progress in told if progress.phase == phase)
        assert first.begun > 0
        assert first.done > first.begun
        assert PHASES.index(told[0].phase) == PHASES.index(phase)


def _prepare_slowly(paths: list[Path], out: Path) -> None:
    def wait(_: PrepareProgress) -> None:
        (out.parent / "reached").touch()
        time.sleep(60)

    prepare_small(paths, out, wait)


def test_two_processes_do_not_work_on_one_store(sources: list[Path], tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_prepare_slowly, args=(sources, tmp_path / "store"))
    process.start()
    try:
        deadline = time.monotonic() + 200
        while not (tmp_path / "reached").exists():
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.02)
        with pytest.raises(DataError, match=r"store\.partial: another process is preparing it"):
            prepare_small(sources, tmp_path / "store")
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert prepare_small(sources, tmp_path / "store").rows == 140


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_an_interrupted_preparation_keeps_its_work(
    sources: list[Path], uninterrupted: dict[str, bytes], tmp_path: Path, error: type[BaseException]
) -> None:
    def interrupt(progress: PrepareProgress) -> None:
        if progress.phase == "encode":
            raise error

    with pytest.raises(error):
        prepare_small(sources, tmp_path / "store", interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["store.partial"]
    told: list[PrepareProgress] = []
    prepare_small(sources, tmp_path / "store", told.append)
    assert told[0].phase == "encode"
    assert content(tmp_path / "store") == uninterrupted


def test_other_options_or_sources_do_not_go_on_with_the_work(sources: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy2(source, tmp_path)) for source in sources]
    out = tmp_path / "out" / "store"

    def interrupt(progress: PrepareProgress) -> None:
        if progress.phase == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_small(copies, out, interrupt)
    before = content(out.parent)
    with pytest.raises(DataError, match=r"store\.partial: begun with options\.min_count = 2, now 3$") as caught:
        prepare_small(copies, out, min_count=3)
    assert "remove" in str(caught.value.hint)
    with pytest.raises(DataError, match=r"begun with options\.sample_negatives = 0\.5, now 0\.25$"):
        prepare_small(copies, out, sample_negatives=0.25)
    with pytest.raises(DataError, match=r"begun with 2 input\.sources, now 1$"):
        prepare_small(copies[:1], out)
    with copies[0].open("ab") as file:
        file.write(b"\n")
    with pytest.raises(DataError, match=r"begun with input\.sources\[0\]\.bytes = \d+, now \d+$"):
        prepare_small(copies, out)
    assert content(out.parent) == before


@pytest.mark.parametrize("name", ["unfinished.lock", "journal.json", "store", "work/000000.part"])
def test_nothing_is_written_through_a_link_in_work_of_somebody_else(
    sources: list[Path], tmp_path: Path, name: str
) -> None:
    def interrupt(progress: PrepareProgress) -> None:
        if progress.phase == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_small(sources, tmp_path / "store", interrupt)
    victim, link = tmp_path / "victim", tmp_path / "store.partial" / name
    victim.write_text("precious")
    link.parent.mkdir(exist_ok=True)
    shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
    link.symlink_to(victim)
    with pytest.raises(DataError, match=r"is a link, and nothing is written through it"):
        prepare_small(sources, tmp_path / "store")
    assert victim.read_text() == "precious"
    assert link.is_symlink()


def test_work_of_another_version_or_with_a_damaged_journal_is_left_alone(sources: list[Path], tmp_path: Path) -> None:
    out, journal = tmp_path / "store", tmp_path / "store.partial" / "journal.json"

    def interrupt(progress: PrepareProgress) -> None:
        if progress.phase == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_small(sources, out, interrupt)
    whole = journal.read_bytes()
    other = whole.replace(b'"dlrmctl-prepare/6"', b'"dlrmctl-prepare/9"')
    for text, message in [
        (other, 'the format is "dlrmctl-prepare/9", expected "dlrmctl-prepare/6"'),
        (whole[:-5], r"journal\.json: damaged: "),
        (b"{}", r"journal\.json: damaged: KeyError\('task'\)"),
        (b"[]", r"journal\.json: damaged: TypeError"),
    ]:
        journal.write_bytes(text)
        before = content(tmp_path)
        with pytest.raises(DataError, match=message) as caught:
            prepare_small(sources, out)
        assert "\n" not in caught.value.message
        assert caught.value.hint == f"remove {tmp_path / 'store.partial'} to start over"
        assert content(tmp_path) == before
    journal.write_bytes(whole)
    assert prepare_small(sources, out).rows == 140


def test_bad_content_removes_the_work(sources: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(sources[0].read_bytes() + b"x\n" * 200)
    with pytest.raises(DataError, match="bad, line 71: 1 field, expected 40"):
        prepare_small([bad], tmp_path / "store", max_bad_rows=150)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def _prepare_with_little_space(paths: list[Path], out: Path, most_bytes: int, answer: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        prepare_small(paths, out)
    except DataError as error:
        answer.put((error.message, error.hint))


@pytest.mark.parametrize(("most_bytes", "file"), [(2000, "000000.part"), (9000, "raw_sample.arrow")])
def test_where_no_more_can_be_written_the_file_is_named_and_the_work_goes_on_later(
    sources: list[Path], uninterrupted: dict[str, bytes], tmp_path: Path, most_bytes: int, file: str
) -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    out = tmp_path / "store"
    process = context.Process(target=_prepare_with_little_space, args=(sources, out, most_bytes, answer))
    process.start()
    message, hint = answer.get(timeout=60)
    process.join()
    assert process.exitcode == 0
    assert "cannot write: file too large" in message
    assert file in message
    assert "ulimit -f" in hint
    assert hint.endswith("store.partial is kept: the same command continues from there")
    assert [path.name for path in tmp_path.iterdir()] == ["store.partial"]
    prepare_small(sources, out)
    assert content(out) == uninterrupted


def test_clearing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x" / "work").mkdir(parents=True)
    for name in ("unfinished.lock", "journal.json", "work/a"):
        (tmp_path / "x" / name).touch()
    clear(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_with_what_helps() -> None:
    full = Path("/dev/full")
    with pytest.raises(DataError, match=r"^/dev/full: cannot write: no space left on device$") as caught:
        with io_errors(full, "write"), full.open("wb", buffering=0) as file:
            file.write(b"x")
    assert "free some space" in str(caught.value.hint)
