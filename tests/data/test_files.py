"""Files are written whole, by one process, and never through a link."""

import fcntl
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import (
    appended_file,
    file_crc32,
    fresh_directory,
    held_lock,
    read_file,
    refuse_links,
    remove_leftovers,
    whole_file,
    write_whole,
)


def _append(path: Path) -> None:
    with appended_file(path) as file:
        file.write(b"new\n")


def _stream(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"new\n")


def _lock(path: Path) -> None:
    with held_lock(path, "busy", "wait"):
        pass


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.mark.parametrize("write", [_stream, lambda path: write_whole(path, b"new\n")])
def test_a_link_is_replaced_not_written_through(victim: Path, tmp_path: Path, write: Callable[[Path], None]):
    link = tmp_path / "directory" / "file"
    link.parent.mkdir()
    link.symlink_to(victim)
    write(link)
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"new\n"
    assert os.listdir(link.parent) == ["file"]


@pytest.mark.parametrize("write", [_append, _lock])
@pytest.mark.parametrize("target", ["victim", "nowhere"])
def test_what_is_opened_as_it_is_must_not_be_a_link(
    victim: Path, tmp_path: Path, write: Callable[[Path], None], target: str
):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    with pytest.raises(DataError, match=r"link is a link, and nothing is written through it"):
        write(link)
    assert victim.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("act", [_append, _lock, _stream, lambda path: read_file(path, most=10), file_crc32])
def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(tmp_path: Path, act: Callable[[Path], None]):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe(?: is not a file|: cannot)"):
        act(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_a_lock_keeps_what_the_file_holds_and_is_held_once(tmp_path: Path):
    path = tmp_path / "lock"
    path.write_text("kept")
    with held_lock(path, "busy: another process", "wait"), path.open() as other:
        with pytest.raises(DataError, match="busy"):
            _lock(path)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _lock(path)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("write", [_stream, _append, lambda path: write_whole(path, b"new\n" * 9999)])
def test_what_the_disk_refuses_is_one_line_and_leaves_nothing(tmp_path: Path, write: Callable[[Path], None]):
    path = tmp_path / "file"
    path.write_text("12345678\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, before[1]))
    try:
        with pytest.raises(DataError, match=r"file: cannot write: file too large"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "12345678\n"
    assert os.listdir(tmp_path) == ["file"]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(victim: Path, tmp_path: Path):
    place = tmp_path / "place"
    (place / "deep").mkdir(parents=True)
    fresh = fresh_directory(place / "deep" / "out")
    (fresh / "file").write_text("half")
    (fresh.parent / (fresh.name[:-2] + "zz")).write_text("half")
    (place / "deep" / "kept").write_text("whole")
    (place / "away").symlink_to(tmp_path)
    remove_leftovers(place)
    assert sorted(path.name for path in place.rglob("*")) == ["away", "deep", "kept"]
    with pytest.raises(DataError, match="away is a link"):
        refuse_links(place, "hint")
