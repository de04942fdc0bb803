"""Names, patterns and ranges become sources in the order of time, and one that matches nothing is reported."""

from pathlib import Path

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.sources import expand_sources


@pytest.fixture
def days(tmp_path: Path) -> Path:
    for name in ("day_0.gz", "day_1.gz", "day_2.gz", "day_10.gz", "test.txt", "train.txt", "a[1].txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "day_9.gz").mkdir()
    return tmp_path


def expanded(directory: Path, *names: str) -> list[str]:
    return [str(Path(n).relative_to(directory)) for n in expand_sources([directory / n for n in names])]


def test_patterns_are_sorted_by_number(days: Path) -> None:
    assert expanded(days, "day_*.gz") == ["day_0.gz", "day_1.gz", "day_2.gz", "day_10.gz"]
    assert expanded(days, "day_?.gz", "t*.txt") == ["day_0.gz", "day_1.gz", "day_2.gz", "test.txt", "train.txt"]


def test_ranges_are_expanded_in_order(days: Path) -> None:
    assert expanded(days, "day_{0..2}.gz") == ["day_0.gz", "day_1.gz", "day_2.gz"]
    (days / "part_09").write_bytes(b"x")
    (days / "part_10").write_bytes(b"x")
    assert expanded(days, "part_{09..10}") == ["part_09", "part_10"]


def test_names_are_kept_as_they_are(days: Path) -> None:
    assert expand_sources(["-"]) == ["-"]
    assert expanded(days, "a[1].txt", "train.txt::x") == ["a[1].txt", "train.txt::x"]
    assert expanded(days, "tr*.txt::x") == ["train.txt::x"]


def test_what_fits_nothing_is_told_with_what_is_there(days: Path) -> None:
    for name, problem, hint in [
        ("day*.tsv", "no file matches", "day_1.gz"),
        ("day_{0..3}.gz", r"day_3\.gz: cannot read: no such file or directory \(of ", "day_2.gz"),
        ("trian.txt", "trian.txt: cannot read: no such file or directory", "train.txt"),
        ("nowhere/day_*", "no file matches", "there is no directory"),
        ("day_{2..1}.gz", r"\{2\.\.1\} is not a range", ""),
    ]:
        with pytest.raises(DataError, match=problem) as caught:
            expanded(days, name)
        assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("names", [("day_0.gz", "day_*.gz"), ("train.txt", "./train.txt"), ("-", "-")])
def test_a_source_named_twice_is_refused(days: Path, names: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="given twice"):
        expand_sources([name if name == "-" else f"{days}/{name}" for name in names])


def test_no_source_is_an_error() -> None:
    with pytest.raises(DataError, match="no file is given"):
        expand_sources([])
