"""Formatting of numbers, units, standard errors, plurals and names."""

import re
from collections.abc import Sequence
from textwrap import wrap

# Names of metrics in messages, by their names in files.
METRICS = {
    "log_loss": "log loss",
    "ne": "NE",
    "auc": "AUC",
    "gauc": "gAUC",
    "calibration": "calibration",
    "accuracy": "accuracy",
}

_NOT_BROKEN = re.compile(r" (?=[±%])")
_KEPT_SPACE = "\xa0"  # strings that are printed have none: it is escaped
_MOST_IN_MESSAGE, _LONGEST_WORD, _LONGEST_PATH = 1000, 80, 400


def printable(text: str) -> str:
    """Escapes control characters: those that move the cursor, set colours, or change the direction of writing.

    Names of files, archive members and columns are untrusted, and a terminal interprets them.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(sign: str) -> str:
    if sign in "\n\t" or sign.isprintable():
        return sign
    return sign.encode("unicode_escape", "surrogatepass").decode()


def shortened(text: str, most: int = 40) -> str:
    """Shortens a string to at most `most` characters by an ellipsis in the middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 3
    return f"{text[: most - 1 - tail]}…{text[len(text) - tail :]}"


def short_message(text: str) -> str:
    """Shortens the words of an error or warning, such as a value of thousands of digits, and then the whole."""
    words = [shortened(word, _LONGEST_PATH if "/" in word else _LONGEST_WORD) for word in text.split(" ")]
    return shortened(" ".join(words), _MOST_IN_MESSAGE)


def wrapped(text: str, width: int | None) -> str:
    """Wraps a string at this width, between words; continuation lines are indented.

    A number stays on the line of its standard error and of its per cent sign.
    """
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        lines += wrap(
            _NOT_BROKEN.sub(_KEPT_SPACE, line),
            width,
            subsequent_indent="  ",
            expand_tabs=False,
            replace_whitespace=False,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [line]
    return "\n".join(lines).replace(_KEPT_SPACE, " ")


def rate_text(value: float) -> str:
    """A rate with one decimal, or three digits if it is small."""
    return f"{value:,.1f}" if value >= 10 or value == 0 else f"{value:#.3g}"


def fixed(value: float, form: str = ".4f") -> str:
    """A number with a fixed number of decimals, without a sign if it is rounded to zero."""
    text = format(value, form)
    return text if text.strip("+-0.") else text.lstrip("+-")


def with_error(value: float | None, error: float | None, form: str = ".4f", *, scale: float = 1.0) -> str:
    """A value and its standard error, such as 0.4631 ±0.0012.

    Args:
        value: None is shown as a dash.
        error: None, for example of a single run, is shown as a dash.
        form: format of the value, such as "+.5f"; the error has no sign.
        scale: factor for both; 100 shows fractions in per cent.
    """
    if value is None:
        return "-"
    known = "-" if error is None else fixed(scale * error, form.lstrip("+"))
    return f"{fixed(scale * value, form)} ±{known}"


def counted(number: int, what: str) -> str:
    """A number and its unit in singular or plural: 1 seed, 2 seeds."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def few(names: Sequence[str], shown: int = 3) -> str:
    """The first names and the number of the others: cat_1, cat_2, cat_3 and 23 more."""
    if len(names) <= shown + 1:  # the last name is shorter than "and 1 more"
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"


def bytes_text(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def number_text(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else fixed(value, f".{digits}f")


def duration(seconds: float) -> str:
    """A duration such as 42 s, 3 min 20 s or 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def last_line(problem: BaseException) -> str:
    """The last line of the message of an error; its class if there is no message."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1].strip()
