"""Times of every form have one value, and one order."""

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest

from dlrmctl.data.moments import moment_of, number_keys, parse_moment, shown_key, time_keys
from dlrmctl.data.times import microseconds, order_kind_of_texts, read_times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("1969-12-31T23:59", datetime(1969, 12, 31, 23, 59, tzinfo=UTC)),
        ("2026-01-31 18:30:05", datetime(2026, 1, 31, 18, 30, 5, tzinfo=UTC)),
        ("2026-01-31T18:30:05.25Z", datetime(2026, 1, 31, 18, 30, 5, 250_000, tzinfo=UTC)),
        ("2026-01-31T18:30:05.123456789", datetime(2026, 1, 31, 18, 30, 5, 123_456, tzinfo=UTC)),
        ("2026-01-31T18:30:05+05:30", datetime(2026, 1, 31, 13, 0, 5, tzinfo=UTC)),
        ("2026-01-31T18:30:05-0130", datetime(2026, 1, 31, 20, 0, 5, tzinfo=UTC)),
        ("2026-01-31 18:30:05+02", datetime(2026, 1, 31, 16, 30, 5, tzinfo=UTC)),
        *(
            (text, None)
            for text in ("2026-02-30", "2026-01-31T24:00", "2026-01-31T10:60", "31.1.2026", "1769900000", "")
        ),
    ],
)
def test_texts_are_read_as_iso_8601(text: str, expected: datetime | None):
    (moment,), (right,) = microseconds(pl.Series([text]))
    assert right == (expected is not None)
    assert moment_of(text) == (int(moment) if right else None)
    if expected is not None:
        assert moment == (expected - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def test_arrow_types_are_the_same_moments_as_their_texts():
    zone = timezone(timedelta(hours=2))
    moment = datetime(2026, 3, 29, 2, 30, tzinfo=zone)
    expected = microseconds(pl.Series([moment.isoformat()]))[0]
    for unit in ("ms", "us", "ns"):
        series = pl.Series([moment], dtype=pl.Datetime(unit, "UTC")).dt.convert_time_zone("Europe/Berlin")
        assert microseconds(series)[0].tolist() == expected.tolist()
    assert microseconds(pl.Series([date(2026, 1, 31), None]))[1].tolist() == [True, False]


def test_keys_have_the_order_of_times_and_of_numbers():
    moments = np.array([-(1 << 62), -1, 0, 1, 1 << 62])
    assert (np.diff(time_keys(moments).astype(object)) > 0).all()
    numbers = np.array([-1e300, -2.5, -1e-300, 0.0, 1e-300, 3, 1e300])
    assert (np.diff(number_keys(numbers).astype(object)) > 0).all()
    assert number_keys(np.array([-0.0])) == number_keys(np.array([0.0]))
    assert [shown_key(int(key), "number") for key in number_keys(np.array([-2.5, 0.0, 1769900000.0]))] == [
        "-2.5",
        "0",
        "1769900000",
    ]


def test_a_moment_is_shown_as_it_is_parsed():
    for text in ("2026-01-31", "1960-01-31T18:30:00.25", "2026-01-31T18:30:05"):
        moment = parse_moment(text)
        assert moment is not None
        assert shown_key(*moment) == text
    assert parse_moment("nan") is None
    assert parse_moment("tomorrow") is None


def test_most_of_the_texts_decide_what_a_column_holds():
    assert order_kind_of_texts(pl.Series(["2026-01-31", "", "x"])) == "time"
    assert order_kind_of_texts(pl.Series(["12", "-", "3.5"])) == "number"
    assert order_kind_of_texts(pl.Series(["a", None])) is None


@pytest.mark.parametrize(
    ("values", "epoch", "expected"),
    [
        (pl.Series([1, None, -2]), "seconds", [1_000_000, None, -2_000_000]),
        (pl.Series([1.5, float("nan")]), "milliseconds", [1500, None]),
        (
            pl.Series(["1", "NA", "", "2.5", "1970-01-02"]),
            "seconds",
            [1_000_000, None, None, 2_500_000, 86_400_000_000],
        ),
        (pl.Series(["1970-01-02", None], dtype=pl.Categorical), None, [86_400_000_000, None]),
        (pl.Series([date(1970, 1, 2)]), "seconds", [86_400_000_000]),
        (pl.Series([None, None]), None, [None, None]),
    ],
)
def test_times_are_read_in_every_form_and_missing_ones_are_known(
    values: pl.Series, epoch: str | None, expected: list[int | None]
):
    found_N, given_N, wrong_N = read_times(values, epoch, ("NA",))
    assert [moment if given else None for moment, given in zip(found_N.tolist(), given_N, strict=True)] == expected
    assert not wrong_N.any()


def test_what_is_no_time_is_wrong():
    for values, epoch in ((["12", "soon", "0000-01-01"], None), ([10**18, -(10**18), 1 << 62], "seconds")):
        found_N, given_N, wrong_N = read_times(pl.Series(values), epoch, ())
        assert given_N.all()
        assert wrong_N.all()
        assert not found_N.any()
