"""Expands patterns and ranges of days to the names of sources, and reports when nothing matches."""

import difflib
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import refuse_url
from dlrmctl.data.formats.texts import MEMBER_MARK, STANDARD_INPUT, split_member
from dlrmctl.data.remote.files import remote_names
from dlrmctl.data.remote.urls import is_remote, without_secrets

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAGIC = re.compile(r"[*?\[]")
_SHOWN_NAMES = 5
_LONGEST_RANGE = 100_000


def expand_sources(sources: Sequence[str | Path]) -> list[str]:
    """Expands names and patterns to sources, in order.

    Args:
        sources: paths; patterns such as "day_*.gz", whose matches are sorted with day_2 before day_10; ranges such
            as "day_{0..22}.gz"; "-" for standard input; a path may include a member, as in "dac.tar.gz::train.txt".

    Raises:
        DataError: if no name is given, a name or pattern matches nothing, or a file is given twice.
    """
    names = [name for source in sources for name in _expand(str(source))]
    if not names:
        raise DataError("no file is given", "give files, patterns in quotes, or - for standard input")
    seen: dict[str, str] = {}
    for name in names:
        key = name
        if name != STANDARD_INPUT and not is_remote(name):
            path, member = split_member(name)
            key = f"{path.resolve()}{MEMBER_MARK}{member or ''}"
        if key in seen:
            raise DataError(f"{without_secrets(name)} is given twice", "its examples would be in two splits")
        seen[key] = name
    return names


def _expand(source: str) -> list[str]:
    if is_remote(source):
        return [match for name in _ranges(source) for match in _remote(name)]
    path, member = split_member(source)
    if source == STANDARD_INPUT or path.exists():
        return [source]
    refuse_url(source)
    pattern, suffix = str(path.expanduser()), MEMBER_MARK + member if member else ""
    names = _ranges(pattern)
    found = [match for name in names for match in _matches(name, source)]
    return [name + suffix for name in found]


def _remote(name: str) -> list[str]:
    found = remote_names(name)
    return [name] if found is None else sorted(found, key=natural)


def _ranges(pattern: str) -> list[str]:
    """Expands `{0..22}`; with as many digits as the first number, if that begins with a zero."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < _LONGEST_RANGE:
        raise DataError(f"{pattern}: {match[0]} is not a range from a number to one not below it")
    width = len(match[1]) if match[1].startswith("0") else 0
    rest = _ranges(pattern[match.end() :])
    return [f"{pattern[: match.start()]}{n:0{width}d}{end}" for n in range(first, last + 1) for end in rest]


def _matches(name: str, source: str) -> list[str]:
    if Path(name).exists():
        return [name]
    if _MAGIC.search(name):
        matches = [match for match in glob.glob(name) if not Path(match).is_dir()]
        if matches:
            return sorted(matches, key=natural)
        raise DataError(f"{name}: no file matches", _nearest(Path(name)))
    what = f"{name}: cannot read: no such file or directory"
    raise DataError(what if name == source else f"{what} (of {source})", _nearest(Path(name)))


def natural(name: str) -> list[tuple[int, str]]:
    """Returns a key for sorting: day_2 before day_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _nearest(path: Path) -> str:
    """Returns a hint of what exists instead."""
    directory = path.parent
    if not directory.is_dir():
        return f"there is no directory {directory}"
    names = sorted((entry.name for entry in directory.iterdir() if not entry.name.startswith(".")), key=natural)
    near = difflib.get_close_matches(path.name, names, n=_SHOWN_NAMES, cutoff=0.5)
    shown = sorted(near, key=natural) or names[:_SHOWN_NAMES]
    if not shown:
        return f"the directory {directory} is empty"
    more = "" if near or len(names) <= _SHOWN_NAMES else ", ..."
    return f"the directory {directory} has {', '.join(shown)}{more}"
