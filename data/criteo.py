"""Criteo's text format: label, 13 integers, 26 categoricals of up to 8 hexadecimal digits; tabs; empty is missing.

N good rows, I = 13 dense features, F = 26 sparse features.
"""

import numpy as np
import polars as pl

from data.lines import MAX_LINE_BYTES, Lines
from data.raw import BadLine, RawColumn, RawPiece

LABEL = "label"
DENSE = tuple(f"int_{i}" for i in range(1, 14))
SPARSE = tuple(f"cat_{f}" for f in range(1, 27))
MISSING_DENSE = -1.0
DENSE_TRANSFORM = "log(max(x, -2) + 3)"  # 0 or more, so that a missing value is below every other
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")
_MAX_DIGITS = 8  # of a categorical
LOST_FIELDS = "lost empty fields at the end"  # a reason to repair a line
_SHOWN = 40  # characters of a wrong value


def transform_dense(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """`DENSE_TRANSFORM` of the integers that are present and `MISSING_DENSE` for the others, float16."""
    return np.where(present, np.log(np.maximum(values, -2) + 3.0), MISSING_DENSE).astype(np.float16)


def parse(lines: Lines, *, labelled: bool = True) -> RawPiece:
    """Every line as a row or as a bad line.

    A line with fewer fields whose last field is a categorical of 8 digits can only have lost empty fields at its end
    (text tools strip them), if its fields parse in their places: it is repaired. A last line without newline may have
    been cut anywhere: it is kept if it ends with such a categorical in its 26th place, and never repaired.

    Args:
        lines: from `read_lines`.
        labelled: whether the first field is a label.
    """
    names = (LABEL, *DENSE, *SPARSE) if labelled else (*DENSE, *SPARSE)
    text, numbers, repaired, bad = _well_formed(lines, len(names))
    table = _read_table(text, names)
    assert table.height == len(numbers), "a line is a row"
    parsed = _read_values(table, labelled, signs=b"+" in text or b"\t-0" in text)
    wrong = _wrong_fields(table, parsed, labelled)
    for row, column in sorted(wrong.items()):
        number = int(numbers[row])
        bad.append(repaired[number] if number in repaired else _wrong_value(number, column, table[row, column]))
        repaired.pop(number, None)
    if wrong:
        good = np.ones(len(numbers), dtype=bool)
        good[list(wrong)] = False
        parsed, numbers = parsed.filter(pl.Series(good)), numbers[good]
        bad.sort(key=lambda line: line.line)
    present = [parsed[name].is_not_null().to_numpy() for name in (*DENSE, *SPARSE)]
    numeric = [parsed[name].fill_null(0).to_numpy() for name in (*DENSE, *SPARSE)]
    values = zip(numeric[len(DENSE) :], present[len(DENSE) :], strict=True)
    return RawPiece(
        lines_N=numbers,
        labels_N=parsed[LABEL].to_numpy() if labelled else np.zeros(len(numbers), dtype=np.uint8),
        dense_IN=transform_dense(np.stack(numeric[: len(DENSE)]), np.stack(present[: len(DENSE)])),
        sparse=[RawColumn(values_N, present_N) for values_N, present_N in values],
        repaired={LOST_FIELDS: len(repaired)} if repaired else {},
        bad=bad,
    )


def _well_formed(lines: Lines, num_fields: int) -> tuple[bytes, np.ndarray, dict[int, BadLine], list[BadLine]]:
    """The lines with the right number of fields, repaired ones among them, and their numbers.

    Returns:
        Text and line numbers (int64) of these; what is wrong with each repaired one; and the bad lines.
    """
    content = lines.content.replace(b"\r\n", b"\n")
    content_bytes = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(content_bytes == ord("\n"))
    starts = np.concatenate(([0], ends[:-1] + 1))
    tabs = np.diff(np.searchsorted(np.flatnonzero(content_bytes == ord("\t")), ends), prepend=0)
    doubtful = (tabs != num_fields - 1) | (ends - starts > MAX_LINE_BYTES)
    if not content.isascii():
        doubtful[np.searchsorted(ends, np.flatnonzero(content_bytes >= 0x80))] = True
    doubtful[-1] |= not lines.ended
    keep = np.ones(len(ends), dtype=bool)
    repaired: dict[int, BadLine] = {}
    bad, pieces, at = [], [], 0
    for index in np.flatnonzero(doubtful).tolist():
        line, number = content[starts[index] : ends[index]], lines.first + index
        whole = lines.ended or index < len(ends) - 1
        problem = _line_problem(number, line, int(tabs[index]) + 1, num_fields, whole=whole)
        if problem is None:
            continue
        pieces.append(content[at : starts[index]])
        at = ends[index] + 1
        if whole and problem.reason == "wrong number of fields" and _lost_empty_fields(line, num_fields):
            repaired[number] = problem
            pieces.append(line + b"\t" * (num_fields - 1 - int(tabs[index])) + b"\n")
        else:
            keep[index] = False
            bad.append(problem)
    text = b"".join([*pieces, content[at:]]) if pieces else content
    return text, lines.first + np.flatnonzero(keep), repaired, bad


def _line_problem(number: int, line: bytes, fields: int, num_fields: int, *, whole: bool) -> BadLine | None:
    if len(line) > MAX_LINE_BYTES:
        return BadLine(number, "too long", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
    if not line.strip():
        return BadLine(number, "blank", "the line is blank")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return BadLine(
            number, "not UTF-8", f"byte {error.start + 1} of the line, {line[error.start]:#04x}, is not UTF-8"
        )
    if fields != num_fields:
        return BadLine(number, "wrong number of fields", f"{fields} field{'s'[: fields != 1]}, expected {num_fields}")
    if not whole and not _is_full_value(line.rsplit(b"\t", 1)[-1]):
        return BadLine(number, "cut short", "the last line has no newline and may be cut short")
    return None


def _is_full_value(field: bytes) -> bool:
    """Whether the field is a categorical as Criteo writes it, zeros in front included."""
    return len(field) == _MAX_DIGITS and _HEX_DIGITS.issuperset(field)


def _lost_empty_fields(line: bytes, num_fields: int) -> bool:
    fields = line.split(b"\t")
    return num_fields - len(SPARSE) < len(fields) < num_fields and _is_full_value(fields[-1])


def _read_table(text: bytes, names: tuple[str, ...]) -> pl.DataFrame:
    """Strings, null where empty. Quotes have no meaning: they are wrong digits like any other."""
    schema = dict.fromkeys(names, pl.String)
    if not text:
        return pl.DataFrame(schema=schema)
    return pl.read_csv(text, has_header=False, separator="\t", quote_char=None, schema=schema)


def _read_values(table: pl.DataFrame, labelled: bool, *, signs: bool) -> pl.DataFrame:
    """Numbers, null where empty or wrong.

    Args:
        table: strings.
        labelled: whether there is a label.
        signs: whether a field may begin with "+" or "-0". Polars reads "+5" as an integer and "+5" and "-0" as
            hexadecimal, so these files need every field checked: they are rare, and it takes as long as reading it.
    """
    dense, sparse = pl.col(DENSE), pl.col(SPARSE)
    integers = dense.cast(pl.Int64, strict=False)
    values = sparse.str.to_integer(base=16, strict=False).cast(pl.UInt32, strict=False)
    right = sparse.str.len_bytes() <= _MAX_DIGITS
    if signs:
        integers = pl.when(~dense.str.starts_with("+")).then(integers)
        right &= ~sparse.str.contains("^[+-]")
    label = pl.when(pl.col(LABEL).is_in(["0", "1"])).then((pl.col(LABEL) == "1").cast(pl.UInt8))
    return table.select(*([label] if labelled else []), integers, pl.when(right).then(values))


def _wrong_fields(table: pl.DataFrame, parsed: pl.DataFrame, labelled: bool) -> dict[int, str]:
    """The first wrong column of each row that has one."""
    wrong: dict[int, str] = {}
    for name in table.columns:
        if name == LABEL and labelled:
            rows = parsed[name].is_null().arg_true()
        elif parsed[name].null_count() == table[name].null_count():
            continue
        else:
            rows = (parsed[name].is_null() & table[name].is_not_null()).arg_true()
        for row in rows.to_list():
            wrong.setdefault(row, name)
    return wrong


def _wrong_value(number: int, column: str, value: str | None) -> BadLine:
    shown = repr(value if value is None or len(value) <= _SHOWN else value[:_SHOWN] + "...")
    if column == LABEL:
        problem = "the label is missing" if value is None else f"the label is {shown}, expected 0 or 1"
        return BadLine(number, "label not 0 or 1", problem)
    reason, expected = (
        ("not an integer", "an integer")
        if column in DENSE
        else ("not hexadecimal", f"at most {_MAX_DIGITS} hexadecimal digits")
    )
    return BadLine(number, reason, f"{column} is {shown}, expected {expected}")
