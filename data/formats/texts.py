"""Finds and opens the texts of a source: plain or packed files, files inside an archive, pipes, standard input.

`find_texts` chooses files inside an archive; `open_text` opens one of them.
"""

import re
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import io_errors
from dlrmctl.data.formats.streams import (
    AGAIN,
    GZIP_MARK,
    Gunzip,
    Joined,
    Readable,
    StreamPart,
    ZipMember,
    damage,
    discard,
)
from dlrmctl.data.remote.files import RemoteFile, locate
from dlrmctl.data.remote.urls import is_remote

STANDARD_INPUT = "-"
HEAD_BYTES = 512  # of a tar file: its first header
_ZIP_MARK, _TAR_MARK, _TAR_MARK_AT = b"PK\x03\x04", b"ustar", 257
_OTHERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
    b"PAR1": "Parquet",
    b"\x93NUMPY": "npy",
    b"PK\x05\x06": "empty zip",
}
MEMBER_MARK = "::"
_SHOWN_MEMBERS = 10
_MOST_HEADER_BYTES = 1 << 16  # a name has at most 4,096 bytes on Linux; tarfile takes 3,000 times a header's size
_DAY = re.compile(r"day_(\d+)(\.txt|\.tsv)?(\.gz)?")
_NO_DATA = re.compile(r"(readme|license|licence).*|\..*", re.IGNORECASE)


@dataclass(frozen=True)
class TextSource:
    """A text and its location.

    Attributes:
        name: its name in messages.
        path: of the file; None for standard input.
        num_bytes: bytes of the text on disk; 0 if unknown.
        zip_member: its name in a zip file.
        start, length: its place in an (uncompressed) tar file; no length if it is not in one.
    """

    name: str
    path: Path | RemoteFile | None
    num_bytes: int
    zip_member: str | None = None
    start: int = 0
    length: int | None = None


class Text:
    """The unpacked bytes of a text, in order.

    Args:
        source: what to read.
        file: the file, opened at its beginning.

    Attributes:
        seekable: whether `seek` works; otherwise everything before a position must be read.
    """

    def __init__(self, source: TextSource, file: BinaryIO) -> None:
        self.source, self.seekable, self._file = source, False, file
        in_archive = source.zip_member is not None or source.length is not None
        stream = self._outer()
        self._base = file.tell() if in_archive else 0
        if in_archive:
            head = stream.read(HEAD_BYTES)
            stream = Joined(head, stream)
            if head.startswith(GZIP_MARK):
                self.seekable = False
                stream = Gunzip(stream, source.name)
        if in_archive or not self.seekable:
            head = stream.read(HEAD_BYTES)
            _refuse_nested(source.name, head)
            stream = Joined(head, stream)
        self._stream: Readable = stream

    def _outer(self) -> Readable:
        """Opens the source, which is still packed if it is a gzip file inside an archive."""
        source, file = self.source, self._file
        if source.zip_member is not None:
            with damage(source.name, "zip"):
                return ZipMember(zipfile.ZipFile(file), source.zip_member, source.name)
        head = file.read(HEAD_BYTES)
        refuse_others(source.name, head)
        regular = source.path is not None and is_regular(source.path)
        if not regular and (is_zip(head) or is_tar(head)):
            raise DataError(f"{source.name}: an archive in a pipe, expected text", "give the file itself")
        if regular and not head.startswith(GZIP_MARK):
            self.seekable = True
            return self._from(0)
        stream: Readable = Joined(head, file)
        if head.startswith(GZIP_MARK):
            stream = Gunzip(stream, source.name)
        if source.length is not None:
            discard(stream, source.start)
            stream = StreamPart(stream, source.length, source.name)
        return stream

    def _from(self, offset: int) -> Readable:
        self._file.seek(self.source.start + offset)
        if self.source.length is None:
            return self._file
        return StreamPart(self._file, self.source.length - offset, self.source.name)

    def read(self, size: int, /) -> bytes:
        """Returns the next `size` bytes of text; fewer only at the end."""
        with io_errors(Path(self.source.name), "read"):
            return self._stream.read(size)

    def seek(self, offset: int) -> None:
        """Moves to a byte of the text, if it is `seekable`."""
        assert self.seekable
        self._stream = self._from(offset)

    def bytes_read(self) -> int:
        """Returns the bytes on disk that were read so far; 0 if unknown."""
        return min(self._file.tell() - self._base, self.source.num_bytes) if self.source.num_bytes else 0


@contextmanager
def open_text(source: TextSource) -> Iterator[Text]:
    """Opens a source at its beginning.

    Raises:
        DataError: if it cannot be read, or is known not to be text.
    """
    with ExitStack() as opened:
        with io_errors(source.path or source.name, "read"):
            file: BinaryIO
            if source.path is None:
                file = opened.enter_context(open(0, "rb", closefd=False))  # standard input must stay open
            else:
                file = opened.enter_context(source.path.open("rb"))
            text = Text(source, file)
        yield text


def is_regular(path: Path | RemoteFile) -> bool:
    """Returns whether it can be read repeatedly, unlike a pipe."""
    return stat.S_ISREG(path.stat().st_mode)


def is_zip(head: bytes) -> bool:
    """Returns whether a file with this beginning is a zip file."""
    return head.startswith(_ZIP_MARK)


def is_tar(head: bytes) -> bool:
    """Returns whether a file with this beginning is a tar file."""
    return head[_TAR_MARK_AT:].startswith(_TAR_MARK)


def refuse_others(name: str, head: bytes) -> None:
    """Raises DataError if a file with this beginning is known not to be text."""
    for mark, what in _OTHERS.items():
        if head.startswith(mark):
            raise DataError(f"{name}: the file is {what}, expected text", "plain, gzip, tar and zip files can be read")


def _refuse_nested(name: str, head: bytes) -> None:
    """Raises DataError if the unpacked content is packed again."""
    refuse_others(name, head)
    kind = "a gzip file" if head.startswith(GZIP_MARK) else "an archive" if is_zip(head) or is_tar(head) else None
    if kind:
        raise DataError(f"{name}: {kind} inside a packed file, expected text", "unpack the outer one first")


class _BoundedTarInfo(tarfile.TarInfo):
    """A member of a tar file with a bounded extended header; tarfile would read any size into memory."""

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._bound()
        return super()._proc_pax(archive)  # type: ignore[misc]

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        self._bound()
        return super()._proc_gnulong(archive)  # type: ignore[misc]

    def _bound(self) -> None:
        if self.size > _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes")


@dataclass(frozen=True)
class _Member:
    name: str
    num_bytes: int  # on disk, if the archive stores it
    start: int = 0
    length: int | None = None

    @property
    def base(self) -> str:
        return PurePosixPath(self.name).name


def find_texts(source: str, *, labelled: bool = True) -> list[TextSource]:
    """Finds the texts of a source, in order: in an archive train.txt, else its days, else its only file.

    In a directory it is train.txt, else its days, compressed or not.

    Args:
        source: a path, a path and a member as in "dac.tar.gz::train.txt", or "-".
        labelled: whether to find train.txt, not test.txt.

    Raises:
        DataError: if the source is missing, empty or damaged, or the member is ambiguous.
    """
    if source == STANDARD_INPUT:
        return [TextSource("standard input", None, 0)]
    path, wanted = source_path(source)
    usual = "train.txt" if labelled else "test.txt"
    if isinstance(path, Path) and path.is_dir():
        return [text for file in _of_directory(path, usual) for text in find_texts(str(file), labelled=labelled)]
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
                    raise DataError(f"{path}: not an archive, so it has no {wanted!r}", f"give {path.name} alone")
                return [TextSource(path.name, path, size)]
            members = _zip_members(file, path.name) if is_zip(head) else _tar_members(file, path.name, is_gzip)
            chosen = _choose(members, path, wanted, usual)
    if is_gzip:  # the size of a member is unknown
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


def _of_directory(path: Path, usual: str) -> list[Path]:
    """Finds Criteo's files in a directory."""
    with io_errors(path, "read"):
        names = sorted(file.name for file in path.iterdir() if file.is_file())
    named = [name for name in (usual, f"{usual}.gz") if name in names][:1]
    days = {int(match[1]): name for name in names if (match := _DAY.fullmatch(name))}
    found = named or [days[day] for day in sorted(days)]
    if not found:
        shown = f"; it has {', '.join(names[:_SHOWN_MEMBERS])}" if names else ""
        raise DataError(
            f"{path}: a directory, expected a file, or {usual} or days in it",
            f"give the files inside it, as in '{path}/day_*'{shown}",
        )
    return [path / name for name in found]


def source_path(source: str) -> tuple[Path | RemoteFile, str | None]:
    """Returns the file of a source, and the member in it, if one is named.

    Raises:
        DataError: if it is on another machine and cannot be found.
    """
    if not is_remote(source):
        return split_member(source)
    url, mark, member = source.partition(MEMBER_MARK)
    return locate(url), member if mark else None


def split_member(source: str) -> tuple[Path, str | None]:
    """Splits a path from the member after it, if there is one."""
    path, mark, member = source.partition(MEMBER_MARK)
    return (Path(path), member) if mark and not Path(source).exists() else (Path(source), None)


def _choose(members: Iterable[_Member], path: Path | RemoteFile, wanted: str | None, usual: str) -> list[_Member]:
    """Finds the members to read; stops early, since listing a packed archive takes as long as reading it."""
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
        problem = f"the archive has {'more than one' if same else 'no'} file {wanted!r}"
    elif not data:
        problem = "the archive has no data"
    elif len(data) == 1:
        return data
    else:
        days = {int(match[1]): member for member in data if (match := _DAY.fullmatch(member.base))}
        if len(days) == len(data):
            return [days[day] for day in sorted(days)]
        problem = f"the archive has {len(data)} files and no {usual}"
    names = [member.name for member in data or seen]
    more = f" and {len(names) - _SHOWN_MEMBERS} more" if len(names) > _SHOWN_MEMBERS else ""
    if not names:
        raise DataError(f"{path}: {problem}", AGAIN)
    hint = f"it has {', '.join(names[:_SHOWN_MEMBERS])}{more}; give one as in {path.name}{MEMBER_MARK}{names[0]}"
    raise DataError(f"{path}: {problem}", hint)


def _zip_members(file: BinaryIO, name: str) -> Iterator[_Member]:
    with damage(name, "zip"):
        infos = zipfile.ZipFile(file).infolist()
    yield from (_Member(info.filename, info.compress_size) for info in infos if not info.is_dir())


def _tar_members(file: BinaryIO, name: str, is_gzip: bool) -> Iterator[_Member]:
    stream = Gunzip(file, name) if is_gzip else Joined(b"", file)
    try:
        # As a stream: a packed archive can only be read in order.
        with tarfile.open(
            fileobj=cast(BinaryIO, stream), mode="r|", bufsize=1 << 20, tarinfo=_BoundedTarInfo
        ) as archive:
            for info in archive:
                if info.isreg():
                    yield _Member(info.name, info.size, info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{name}: the tar file is cut short or damaged", AGAIN) from error
