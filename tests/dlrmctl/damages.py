"""Damages files as disks, people in a hurry and people who mean harm do, and checks what commands answer.

Every file is cut short, changed in a byte, removed, emptied, replaced by other text, a link, a directory or a pipe; an
entry of its JSON or TOML becomes something else, with checksums made to fit or not. The answer must be the numbers of
the undamaged files, or one line and status 2; nothing but the answer is written, and nothing takes long.
"""

import json
import os
import random
import shutil
import signal
import struct
import tomllib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import read_file
from dlrmctl.data.sealed import write_sealed
from dlrmctl.settings.toml import write_settings
from tests.dlrmctl.commands import Done, in_process

SECONDS = 600  # for one answer, on a busy machine
_JUNK: list[Any] = [
    *({}, [], None, True, -1, 0, 0.5, 2**31, 2**53, 2**63, 10**4000, 1e300, "x" * 3000, "", "../../elsewhere", "nan"),
    *({"a": {}}, [[1]], [None], "\x1b[31m\n", "\u202e"),
]
_TEXTS = [
    *("{}", "null", "[]", "[" * 100_000, "9" * 5000, '{"format": 1e999}', "\x00" * 50, "\x1b[31m{", '{"step": NaN}'),
    *('{"a":' * 50_000, "a = " + "[" * 50_000, "\ufeff{}", '{"files": {}}'),
]
_RECORD = struct.Struct("<QI")  # size and CRC-32 of a block, in the table of a store


class _LateError(BaseException):
    """Not one that a command takes for a damaged file."""


@dataclass(frozen=True)
class Command:
    """A command that reads damaged files.

    Attributes:
        arguments: of the command, for the damaged directory or file and a place for its output.
        numbers: what of the answer must stay as it is; None where an answer need not say.
        writes: whether it may change files of the directory.
        share: of the damages, against 1 for others.
        run: runs it.
    """

    arguments: Callable[[Path, Path], list[str | Path]]
    numbers: Callable[[Done], Any]
    writes: bool = False
    share: float = 1.0
    run: Callable[..., Done] = in_process


def answers_to_damages(
    whole: Path,
    tmp_path: Path,
    commands: Mapping[str, Command],
    count: int,
    seed: int,
    *,
    sealed_share: float = 0.4,
    least_right: float = 0.05,
) -> None:
    """Damages copies of a directory or a file, runs a command on each, and checks the answers.

    Faults are printed as they are found, and the numbers of answers at the end.

    Args:
        whole: what is copied; it stays as it is.
        count: of damages.
        sealed_share: of the damages of a directory, after which checksums are made to fit: other numbers are no fault.
        least_right: of all answers, the share that must be the numbers of what is whole.
    """
    random_, answers, wrong = random.Random(seed), Counter[str](), list[str]()
    canary = tmp_path / "elsewhere"
    canary.write_text("kept")
    before = _contents(whole)
    good: dict[str, Any] = {}
    for name, command in commands.items():
        with _copy(whole, tmp_path / "copy", linked=False) as copy:
            done = _answer(command, copy)
            assert not [*_faults(done)], done.err
            good[name] = command.numbers(done) if done.status == 0 else None
    shares = [command.share for command in commands.values()]
    for number in range(count):
        [name] = random_.choices(list(commands), shares)
        command = commands[name]
        with _copy(whole, tmp_path / "copy", linked=not command.writes) as copy:
            file = random_.choice(_files(copy))
            kind = random_.choice([*_DAMAGES] if file.is_file() else _OF_LINKS)
            _DAMAGES[kind](file, random_, canary)
            sealed = whole.is_dir() and random_.random() < sealed_share
            if sealed:
                seal(copy)
            where = f"{number}: {name} after {kind} of {file.relative_to(copy.parent)}, {sealed=}, {seed=}"
            done = _answer(command, copy)
            right = done.status != 0 or sealed or command.numbers(done) == good[name]
            faults = [*_faults(done), *["other numbers"] * (not right)]
        if canary.read_text() != "kept" or {path.name for path in tmp_path.iterdir()} != {canary.name}:
            faults.append("changed files elsewhere")
            canary.write_text("kept")
        if faults:
            wrong.append(f"{where}: {', '.join(faults)}\n{done.err[-3000:]}")
            print(wrong[-1], flush=True)
        answers["refused" if done.status else "numbers that may be others" if sealed else "right numbers"] += 1
    print(f"{count} damages of {whole.name}:", ", ".join(f"{number} {answer}" for answer, number in answers.items()))
    assert not wrong, "\n\n".join(wrong)
    assert _contents(whole) == before
    assert answers["refused"] > count // 10, answers
    assert answers["right numbers"] >= count * least_right, answers


def _faults(done: Done) -> Iterator[str]:
    """What is wrong with an answer, whatever was damaged."""
    if done.status not in (0, 2):
        yield f"status {done.status}"
    if sum(line.startswith("error: ") for line in done.err.splitlines()) != (done.status == 2):
        yield "not one line"
    if "Traceback" in done.err or "weights_only" in done.err:
        yield "another program's words"
    if len(done.err) > 20_000:
        yield "an endless line"
    if {"\x1b", "\u202e"} & {*done.err, *done.out}:
        yield "control characters"


def _answer(command: Command, copy: Path) -> Done:
    def late(*_: object) -> None:
        raise _LateError(f"no answer after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return command.run(*command.arguments(copy, copy.parent / "out"))
    except _LateError as late_error:
        return Done(-signal.SIGALRM, "", str(late_error))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def _copy(whole: Path, place: Path, *, linked: bool) -> Iterator[Path]:
    """A copy for a while; with `linked`, of hard links: whoever writes to them is found out by the contents."""
    place.mkdir()
    try:
        copy = place / whole.name
        if whole.is_dir():
            shutil.copytree(whole, copy, symlinks=True, copy_function=os.link if linked else shutil.copy2)
        else:
            shutil.copy2(whole, copy)
        yield copy
    finally:
        shutil.rmtree(place)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.is_file() or file.is_symlink())


def _contents(path: Path) -> dict[Path, int]:
    return {file: zlib.crc32(file.read_bytes()) for file in _files(path) if file.is_file()}


def _write(file: Path, content: bytes) -> None:
    """A new file: the old one may have other names."""
    file.unlink()
    file.write_bytes(content)


def _change(value: Any, random_: random.Random) -> Any:
    """The value with one entry somewhere replaced or removed."""
    if not isinstance(value, dict | list) or not value or random_.random() < 0.15:
        return random_.choice(_JUNK)
    key = random_.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if random_.random() < 0.15:
        del value[key]
    else:
        value[key] = _change(value[key], random_)
    return value


def _changed_entry(file: Path, random_: random.Random, _: Path) -> None:
    """An entry of TOML, of JSON, or of a line of it; of other files, many bytes."""
    content = file.read_bytes()
    try:
        if file.suffix == ".toml":
            text = tomli_w.dumps(_change(tomllib.loads(content.decode()), random_))
        else:
            lines = content.decode().splitlines() if file.suffix == ".jsonl" else [content.decode()]
            number = random_.randrange(len(lines))
            lines[number] = json.dumps(_change(json.loads(lines[number]), random_))
            text = "\n".join(lines) + "\n"
        _write(file, text.encode())
    except (ValueError, TypeError, AttributeError):  # other files, and what TOML has no words for
        _write(file, content[::-1])


def _flip(file: Path, random_: random.Random, _: Path) -> None:
    content = bytearray(file.read_bytes() or b"x")
    content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    _write(file, bytes(content))


def _cut(file: Path, random_: random.Random, _: Path) -> None:
    content = file.read_bytes()
    _write(file, content[: random_.randrange(len(content) + 1)])


def _replaced(file: Path, make: Callable[[], None]) -> None:
    file.unlink()
    make()


_DAMAGES: dict[str, Callable[[Path, random.Random, Path], None]] = {
    "cut": _cut,
    "flip": _flip,
    "entry": _changed_entry,
    "remove": lambda file, random_, canary: file.unlink(),
    "empty": lambda file, random_, canary: _write(file, b""),
    "text": lambda file, random_, canary: _write(file, random_.choice(_TEXTS).encode()),
    "link": lambda file, random_, canary: _replaced(file, lambda: file.symlink_to(canary)),
    "directory": lambda file, random_, canary: _replaced(file, file.mkdir),
    "pipe": lambda file, random_, canary: _replaced(file, lambda: os.mkfifo(file)),
}
_OF_LINKS = [kind for kind in _DAMAGES if kind not in ("cut", "flip", "entry")]


def seal(path: Path) -> None:
    """Makes checksums fit, as an attacker would."""
    for table in path.glob("*.blocks"):
        _try(lambda table=table: _seal_blocks(table))
    for file in sorted(path.rglob("*.json"), key=lambda file: file.name == "complete.json"):
        _try(lambda file=file: _seal_json(file))
    _try(lambda: _seal_settings(path / "run.toml"))


def _try(work: Callable[[], None]) -> None:
    try:
        work()
    except (OSError, DataError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return


def _content(file: Path) -> bytes:
    return read_file(file, most=1 << 30)


def _seal_blocks(table: Path) -> None:
    blocks, at, records = _content(table.with_suffix(".bin")), 0, b""
    for size, _ in _RECORD.iter_unpack(_content(table)):
        records += _RECORD.pack(size, zlib.crc32(blocks[at : at + size]))
        at += size
    _write(table, records)


def _seal_json(file: Path) -> None:
    content = json.loads(_content(file))
    if file.name == "complete.json":
        for name in content["files"]:
            data = _content(file.parent / name)
            content["files"][name] = [len(data), zlib.crc32(data)]
        _write(file, json.dumps(content).encode())
    elif "crc32" in content:
        _seal_entries(content, file.parent)
        del content["crc32"]
        write_sealed(file, content.pop("format"), content)


def _seal_entries(value: Any, directory: Path) -> None:
    """Checksums of the files that are named beside them."""
    if isinstance(value, list):
        for item in value:
            _seal_entries(item, directory)
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, dict) and item.keys() >= {"bytes", "crc32"} and (directory / name).is_file():
                data = _content(directory / name)
                item.update(bytes=len(data), crc32=zlib.crc32(data))
            _seal_entries(item, directory)
        for file, crc32 in (("file", "crc32"), ("table", "table_crc32")):
            if file in value and crc32 in value:
                _try(
                    lambda file=file, crc32=crc32: value.update({crc32: zlib.crc32(_content(directory / value[file]))})
                )


def _seal_settings(file: Path) -> None:
    sections = tomllib.loads(_content(file).decode())
    del sections["format"], sections["crc32"]
    write_settings(file, sections)
