"""What texts a file holds: itself, or the files of Criteo's that are inside an archive."""

import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from data.errors import DataError
from data.files import io_errors
from data.streams import AGAIN, GZIP_MARK, Gunzip, Joined, damage
from data.texts import (
    HEAD_BYTES,
    STANDARD_INPUT,
    TextSource,
    is_regular,
    is_tar,
    is_zip,
    refuse_others,
)

MEMBER_MARK = "::"
_SHOWN_MEMBERS = 10
_DAY = re.compile(r"day_(\d+)(\.txt|\.tsv)?(\.gz)?")
_NO_DATA = re.compile(r"(readme|license|licence).*|\..*", re.IGNORECASE)


@dataclass(frozen=True)
class _Member:
    name: str
    num_bytes: int  # on disk, where the archive says it
    start: int = 0
    length: int | None = None

    @property
    def base(self) -> str:
        return PurePosixPath(self.name).name


def find_texts(source: str, *, labelled: bool = True) -> list[TextSource]:
    """The texts of a source, in order; of an archive train.txt, else its days, else its only file.

    Args:
        source: a path, a path and a member as in "dac.tar.gz::train.txt", or "-".
        labelled: whether train.txt is meant, and not test.txt.

    Raises:
        DataError: if the source is missing, empty or damaged, or it is not clear which member is meant.
    """
    if source == STANDARD_INPUT:
        return [TextSource("standard input", None, 0)]
    path, wanted = split_member(source)
    if path.is_dir():
        raise DataError(f"{path}: a directory, expected a file", f"name the files inside it, as in '{path}/day_*'")
    with io_errors(path, "read"):
        if not is_regular(path):
            return [TextSource(path.name, path, 0)]
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            if size == 0:
                raise DataError(f"{path}: the file is empty", AGAIN)
            refuse_others(path.name, head)
            file.seek(0)
            is_gzip = head.startswith(GZIP_MARK)
            inside = Gunzip(file, path.name).read(HEAD_BYTES) if is_gzip else head
            file.seek(0)
            if not is_zip(head) and not is_tar(inside):
                if wanted is not None:
                    raise DataError(f"{path}: not an archive, so it holds no {wanted!r}", f"name {path.name} alone")
                return [TextSource(path.name, path, size)]
            members = _zip_members(file, path.name) if is_zip(head) else _tar_members(file, path.name, is_gzip)
            chosen = _choose(members, path, wanted, "train.txt" if labelled else "test.txt")
    if is_gzip:  # nothing says what a member takes
        total = sum(member.length or 0 for member in chosen)
        shares = [size * (member.length or 0) // max(total, 1) for member in chosen]
    else:
        shares = [member.num_bytes for member in chosen]
    return [
        TextSource(
            f"{path.name}{MEMBER_MARK}{member.name}",
            path,
            max(share, 1),
            zip_member=member.name if member.length is None else None,
            start=member.start,
            length=member.length,
        )
        for member, share in zip(chosen, shares, strict=True)
    ]


def split_member(source: str) -> tuple[Path, str | None]:
    """A path and the member named behind it, if one is."""
    path, mark, member = source.partition(MEMBER_MARK)
    return (Path(path), member) if mark and not Path(source).exists() else (Path(source), None)


def _choose(members: Iterable[_Member], path: Path, wanted: str | None, usual: str) -> list[_Member]:
    """Stops as soon as it is clear: to list a packed archive takes as long as to read it."""
    seen: list[_Member] = []
    for member in members:
        if member.name == wanted or (wanted is None and member.base == usual):
            return [member]
        seen.append(member)
    data = [member for member in seen if not _NO_DATA.fullmatch(member.base) and "__MACOSX" not in member.name]
    if wanted is not None:
        same = [member for member in seen if member.base == wanted]
        if len(same) == 1:
            return same
        problem = f"the archive holds {'more than one' if same else 'no'} file {wanted!r}"
    elif not data:
        problem = "the archive holds no data"
    elif len(data) == 1:
        return data
    else:
        days = {int(match[1]): member for member in data if (match := _DAY.fullmatch(member.base))}
        if len(days) == len(data):
            return [days[day] for day in sorted(days)]
        problem = f"the archive holds {len(data)} files and no {usual}"
    names = [member.name for member in data or seen]
    more = f" and {len(names) - _SHOWN_MEMBERS} more" if len(names) > _SHOWN_MEMBERS else ""
    hint = f"it holds {', '.join(names[:_SHOWN_MEMBERS])}{more}; name one as in {path.name}{MEMBER_MARK}{names[0]}"
    raise DataError(f"{path}: {problem}", hint if names else AGAIN)


def _zip_members(file: BinaryIO, name: str) -> Iterator[_Member]:
    with damage(name, "zip"):
        infos = zipfile.ZipFile(file).infolist()
    yield from (_Member(info.filename, info.compress_size) for info in infos if not info.is_dir())


def _tar_members(file: BinaryIO, name: str, is_gzip: bool) -> Iterator[_Member]:
    stream = Gunzip(file, name) if is_gzip else Joined(b"", file)
    try:
        # As a stream: a packed archive can only be read from front to back.
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|", bufsize=1 << 20) as archive:
            for info in archive:
                if info.isreg():
                    yield _Member(info.name, info.size, info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{name}: the tar file is cut short or damaged", AGAIN) from error
