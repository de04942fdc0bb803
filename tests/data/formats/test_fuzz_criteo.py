"""For any bytes: every line is kept, repaired or omitted, and kept rows have the values of the file."""

import io
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.data.formats.criteo import LOST_FIELDS, parse
from dlrmctl.data.formats.lines import MAX_LINE_BYTES, cut_lines
from tests.data.criteo_files import Example, as_text, make_rows, read_slowly, without_nan


def check(text: bytes, piece_bytes: int = 1 << 20, *, labelled: bool = True) -> None:
    """Compares the parser with the slow and plain way to read."""
    examples, repaired, bad = read_slowly(text, labelled=labelled)
    kept: dict[int, Example] = {}
    left_out, num_repaired = [], 0
    for lines in cut_lines(io.BytesIO(text), piece_bytes=piece_bytes):
        piece = parse(lines, labelled=labelled)
        dense = [without_nan(row) for row in piece.dense_IN.T]
        sparse = [np.where(c.present_N, c.values.astype(object), None).tolist() for c in piece.sparse]
        for n, line in enumerate(piece.lines_N.tolist()):
            assert line not in kept
            kept[line] = int(piece.labels_N[n]), dense[n], [column[n] for column in sparse]
        assert [line.line for line in piece.bad] == sorted(line.line for line in piece.bad)
        left_out += [line.line for line in piece.bad]
        num_repaired += piece.repaired.get(LOST_FIELDS, 0)
    assert kept == examples
    assert (sorted(left_out), num_repaired) == (sorted(bad), len(repaired))


GOOD = [[field.encode() for field in row] for row in make_rows(40)]
AWKWARD = (
    *(b"", b" ", b"0", b"-0", b"+5", b"-5", b"--5", b"-", b"+", b"007", b"0x1f", b"1_000", b"1e3", b"1.0", b"nan"),
    *(
        "\u0663".encode(),
        "\uff11".encode(),
        "é".encode(),
        b"\xff",
        b"\xc3",
        b"\0",
        b"5\0",
        b'"',
        b'"5"',
        b"'",
        b"\\N",
        b"NULL",
    ),
    *(
        b"\r",
        b"5\r",
        b"\x0b",
        b"\x0c",
        b"\x85",
        b"9223372036854775807",
        b"9223372036854775808",
        b"-9223372036854775808",
    ),
    *(b"-9223372036854775809", b"9" * 30, b"0" * 30, b"-" + b"0" * 30 + b"7", b"12345678", b"123456789", b"-12345678"),
    *(b"65532", b"65533", b"65534", b"65535", b"65536", b"-1", b"-2", b"-3", b"deadbeef", b"DEADBEEF", b"deadbeef0"),
    *(
        b"eadbeef",
        b"deadbeeg",
        b"deadbee:",
        b"deadbee/",
        b"@eadbeef",
        b"`eadbeef",
        b"Geadbeef",
        b"-eadbeef",
        b"ffffffff",
    ),
    *(b"7\t7", b"\n", b"\r\n", b"x" * 300),
)
field = st.one_of(st.sampled_from(AWKWARD), st.binary(max_size=10), st.from_regex(rb"-?[0-9]{1,20}", fullmatch=True))


@st.composite
def line(draw: st.DrawFn) -> bytes:
    row = list(draw(st.sampled_from(GOOD)))
    for place in draw(st.lists(st.integers(0, 39), max_size=3)):
        row[place] = draw(field)
    cut = draw(st.sampled_from([40] * 6 + [0, 1, 13, 14, 15, 20, 38, 39]))
    row = row[:cut] + draw(st.sampled_from([[]] * 8 + [[b""], [b"0badcafe"]]))
    return b"\t".join(row) + draw(st.sampled_from([b"\n"] * 6 + [b"\r\n", b"\n\n", b"\r"]))


@given(st.lists(line(), max_size=8), st.sampled_from([b"", b"", b"\xef\xbb\xbf"]), st.integers(0, 9), st.booleans())
@settings(max_examples=250)
def test_awkward_fields_and_lines(lines: list[bytes], start: bytes, cut: int, labelled: bool) -> None:
    text = start + b"".join(lines)
    check(text[: len(text) - cut] if cut else text, labelled=labelled)


@given(st.binary(max_size=400), st.booleans())
@settings(max_examples=200)
def test_any_bytes(text: bytes, labelled: bool) -> None:
    check(text, labelled=labelled)


def _flip(text: bytearray, draw: random.Random, at: int) -> None:
    text[at] ^= 1 << draw.randrange(8)


def _replace(text: bytearray, draw: random.Random, at: int) -> None:
    text[at] = draw.choice(b"\t\n\r\0 +-0_\"'x9afgAFG\x80\xff\x00")


def _delete(text: bytearray, draw: random.Random, at: int) -> None:
    del text[at : at + draw.choice([1, 1, 1, 8, 9, 100])]


def _insert(text: bytearray, draw: random.Random, at: int) -> None:
    text[at:at] = draw.choice(
        [b"\t", b"\n", b"\r", b"\0", b"-", b"\t\t\t", b"\xef\xbb\xbf", b"\n\n\n", draw.randbytes(9)]
    )


@pytest.mark.parametrize("damage", [_flip, _replace, _delete, _insert])
@pytest.mark.parametrize("labelled", [True, False])
def test_damage_anywhere(damage: Callable[[bytearray, random.Random, int], None], labelled: bool) -> None:
    rows = [row if labelled else row[1:] for row in make_rows(12)]
    for seed in range(60):
        draw = random.Random(seed)
        text = bytearray(as_text(rows))
        for _ in range(draw.choice([1, 3, 30])):
            damage(text, draw, draw.randrange(len(text)))
        check(bytes(text), draw.choice([50, 700, 1 << 20]), labelled=labelled)


@pytest.mark.parametrize("place", [0, 1, 13, 14, 39])
def test_every_byte_at_every_place_of_a_field(place: int) -> None:
    lines = []
    for length in range(1, 10):
        for at in range(length):
            for byte in range(256):
                row = list(GOOD[0])
                row[place] = bytes(b"12345678"[:at] + bytes([byte]) + b"123456789"[at + 1 : length])
                lines.append(b"\t".join(row) + b"\n")
    check(b"".join(lines))


def test_every_small_integer_and_the_edges_of_large_ones() -> None:
    edges = [sign * (1 << power) + more for power in range(64) for more in (-1, 0, 1) for sign in (1, -1)]
    numbers = [*range(-12, 66_000), *edges, *(10**power for power in range(20))]
    numbers += [0] * (-len(numbers) % 13)
    rows = [[b"1", *(b"%d" % n for n in numbers[i : i + 13]), *GOOD[0][14:]] for i in range(0, len(numbers), 13)]
    check(b"".join(b"\t".join(row) + b"\n" for row in rows))


@pytest.mark.parametrize("more", [0, 1])
def test_a_line_may_be_so_long_and_no_longer(more: int) -> None:
    row = list(GOOD[0])
    row[1] = b""
    row[1] = b"0" * (MAX_LINE_BYTES - len(b"\t".join(row)) + more)
    for end in (b"\n", b"\r\n"):
        check(b"\t".join(row) + end + b"\t".join(GOOD[1]) + end)
        check(b"\t".join(row) + end + b"blank" + end)
