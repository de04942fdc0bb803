"""Every kind of file gives the same text, and one that is damaged, cut short or unclear is named."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.data.formats.texts import find_texts, open_text
from tests.data.criteo_files import as_text, make_rows

TEXT = as_text(make_rows(400))


def read_all(source: str | Path, size: int = 1000, **settings: bool) -> bytes:
    (found,) = find_texts(str(source), **settings)
    with open_text(found) as text:
        parts = iter(lambda: text.read(size), b"")
        return b"".join(parts)


def pack(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """An archive of the kind its name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


DAC = [("readme.txt", b"read"), ("train.txt", TEXT), ("test.txt", b"unlabelled\n"), ("license.txt", b"may")]
ARCHIVES = ["dac.tar.gz", "dac.tgz", "dac.tar", "dac.zip"]


@pytest.mark.parametrize("size", [1, 4096, 1 << 20])
def test_gzip_is_known_by_its_content_and_may_have_members(tmp_path: Path, size: int) -> None:
    half = len(TEXT) // 2
    packed = gzip.compress(TEXT[:half]) + gzip.compress(b"") + b"\0" * 700 + gzip.compress(TEXT[half:]) + b"\0" * 512
    (tmp_path / "day_0").write_bytes(packed)
    (tmp_path / "day_1.gz").write_bytes(TEXT)
    assert read_all(tmp_path / "day_0", size) == TEXT
    assert read_all(tmp_path / "day_1.gz", size) == TEXT


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_give_their_training_file(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / name, DAC)
    assert read_all(path) == TEXT
    assert read_all(path, labelled=False) == b"unlabelled\n"
    assert read_all(f"{path}::readme.txt") == b"read"
    assert [text.name for text in find_texts(str(path))] == [f"{name}::train.txt"]
    hidden = path.rename(tmp_path / "no_ending")
    assert read_all(hidden) == TEXT


@pytest.mark.parametrize("name", ARCHIVES)
def test_days_in_an_archive_come_in_order(tmp_path: Path, name: str) -> None:
    days = [("x/day_10", b"ten\n"), ("x/day_2.gz", gzip.compress(b"two\n")), ("x/day_0", b"zero\n"), ("README.md", b"")]
    path = pack(tmp_path / name, days)
    found = find_texts(str(path))
    contents = []
    for source in found:
        with open_text(source) as text:
            contents.append(text.read(100))
    assert contents == [b"zero\n", b"two\n", b"ten\n"]
    assert sum(source.num_bytes for source in found) <= path.stat().st_size
    assert read_all(f"{path}::day_2.gz") == b"two\n"


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_one_file_needs_no_name(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / name, [("._mine.tsv", b"?"), ("__MACOSX/mine.tsv", b"?"), ("mine.tsv", TEXT)])
    assert read_all(path) == TEXT


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_unclear_archive_is_an_error_that_says_how_to_name_a_member(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / name, [("a/x.tsv", b"1"), ("b/x.tsv", b"2")])
    with pytest.raises(DataError, match=rf"{name}: the archive has 2 files and no train\.txt") as caught:
        find_texts(str(path))
    assert caught.value.hint == f"it has a/x.tsv, b/x.tsv; give one as in {name}::a/x.tsv"
    for member, problem in {"x.tsv": "more than one file 'x.tsv'", "y": "no file 'y'"}.items():
        with pytest.raises(DataError, match=problem):
            find_texts(f"{path}::{member}")
    assert read_all(f"{path}::b/x.tsv") == b"2"
    with pytest.raises(DataError, match="the archive has no data"):
        find_texts(str(pack(tmp_path / f"empty_{name}", [("readme.txt", b"1")])))


@pytest.mark.parametrize("name", ["dac.tar", "plain"])
def test_what_is_not_packed_is_entered_in_the_middle(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / name, DAC) if name == "dac.tar" else tmp_path / name
    if name == "plain":
        path.write_bytes(TEXT)
    (source,) = find_texts(str(path))
    assert source.num_bytes == len(TEXT)
    with open_text(source) as text:
        assert text.seekable
        for offset in (1000, 0, len(TEXT)):
            text.seek(offset)
            assert text.read(len(TEXT)) == TEXT[offset:]


@pytest.mark.parametrize("name", ["day.gz", "dac.tar.gz", "dac.tar", "dac.zip"])
def test_a_file_that_is_cut_short_is_named_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "day.gz":
        path.write_bytes(gzip.compress(TEXT))
    else:
        pack(path, [("train.txt", TEXT)])
    whole = path.read_bytes()
    # A tar file is known by its first header; what ends it may be missing.
    last = 512 + len(TEXT) if name == "dac.tar" else len(whole)
    for cut in ([3] if name == "day.gz" else []) + [600, len(whole) // 2, last - 5]:
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"{name}.*cut short"):
            read_all(path)


@pytest.mark.parametrize("name", ["day.gz", "dac.tar.gz", "dac.zip"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "day.gz":
        path.write_bytes(gzip.compress(TEXT))
    else:
        pack(path, [("train.txt", TEXT)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*damaged"):
        read_all(path)


def test_garbage_behind_a_gzip_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / "day.gz").write_bytes(gzip.compress(TEXT) + b"more")
    with pytest.raises(DataError, match=r"day\.gz: the gzip file is damaged"):
        read_all(tmp_path / "day.gz")


def test_a_zip_file_with_a_password_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "dac.zip", DAC[1:2])
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"dac\.zip::train\.txt: the zip file cannot be read here: .*password"):
        read_all(path)


@pytest.mark.parametrize(
    ("head", "what"), [(b"BZh9", "bzip2"), (b"PAR1", "Parquet"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ", "xz")]
)
def test_files_of_other_kinds_are_named(tmp_path: Path, head: bytes, what: str) -> None:
    (tmp_path / "day_0").write_bytes(head + b"\0" * 100)
    with pytest.raises(DataError, match=f"day_0: the file is {what}, expected text"):
        find_texts(str(tmp_path / "day_0"))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "plain").write_bytes(TEXT)
    for name, message in {
        "nowhere": "nowhere: cannot read: no such file or directory",
        "empty": "empty: the file is empty",
        ".": "a directory, expected a file",
        "plain::train.txt": "plain: not an archive, so it has no 'train.txt'",
    }.items():
        with pytest.raises(DataError, match=message):
            find_texts(str(tmp_path / name))


@pytest.mark.parametrize("packed", [False, True])
def test_a_pipe_is_read_once(tmp_path: Path, packed: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    content = gzip.compress(TEXT) if packed else TEXT
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    thread.start()
    assert read_all(tmp_path / "pipe") == TEXT
    thread.join()


@pytest.mark.parametrize("kind", ["plain", "gzip", "tar"])
def test_standard_input_is_text_plain_or_packed(tmp_path: Path, kind: str) -> None:
    program = (
        "import sys\nfrom dlrmctl.data.formats.texts import find_texts, open_text\n"
        "with open_text(find_texts('-')[0]) as text:\n    sys.stdout.buffer.write(text.read(1 << 30))\n"
    )
    content = {"plain": TEXT, "gzip": gzip.compress(TEXT), "tar": pack(tmp_path / "dac.tar", DAC).read_bytes()}[kind]
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=False)
    if kind == "tar":
        assert b"standard input: an archive in a pipe, expected text" in done.stderr
    else:
        assert done.stdout == TEXT


@pytest.mark.parametrize("outer", ["x.tar", "x.tar.gz", "x.zip", "x.gz"])
@pytest.mark.parametrize("inner", ["dac.tar", "dac.tar.gz", "dac.zip", "twice.gz"])
def test_what_is_packed_twice_is_refused_by_name(tmp_path: Path, outer: str, inner: str) -> None:
    content = gzip.compress(gzip.compress(TEXT)) if inner == "twice.gz" else pack(tmp_path / inner, DAC).read_bytes()
    if outer == "x.gz":
        (tmp_path / outer).write_bytes(gzip.compress(content))
        if inner == "dac.tar":  # x.gz is then a tar.gz by another name
            assert read_all(tmp_path / outer) == TEXT
            return
    else:
        pack(tmp_path / outer, [(inner, content)])
    with pytest.raises(DataError, match=rf"{outer}.*: (a gzip file|an archive) inside a packed file"):
        read_all(tmp_path / outer)


def test_a_header_of_a_tar_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    record = b"10 a=bbbb\n"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record) * 40_000
    member = tarfile.TarInfo("train.txt")
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + (record * 40_000).ljust(-(-header.size // 512) * 512, b"\0"))
        file.write(member.tobuf() + bytes(1024))
    program = (
        "import resource, sys\nfrom dlrmctl.data.errors import DataError\n"
        "from dlrmctl.data.formats.texts import find_texts\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    find_texts(sys.argv[1])\nexcept DataError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.tar")], capture_output=True, text=True, check=True
    )
    message, kibibytes = done.stdout.splitlines()
    assert "x.tar: the tar file is cut short or damaged" in message
    assert int(kibibytes) < 8 * 1024  # the header alone is 0.4 MB, and took 1.2 GB


def test_a_tar_file_without_files_is_one_line(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        folder = tarfile.TarInfo("empty")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    with pytest.raises(DataError, match=r"x.tar: the archive has no data"):
        find_texts(str(tmp_path / "x.tar"))
