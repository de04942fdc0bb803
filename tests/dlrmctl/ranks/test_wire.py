"""What ranks send each other arrives as it was, and cannot be anything else."""

import json
import pickle
from pathlib import Path

import pytest

from dlrmctl.data.errors import DataError
from dlrmctl.errors import UserError
from dlrmctl.ranks.wire import decode, encode


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        float("inf"),
        "ä\x00",
        Path("runs/a"),
        [],
        (),
        (Path("x"), [1, (2, None)]),
        {"a": {"b": (1, 2)}, "c": ["path", "not a path"]},
    ],
)
def test_values_arrive_as_they_were(value: object):
    arrived = decode(encode(value))
    assert arrived == value
    assert type(arrived) is type(value)


@pytest.mark.parametrize("kind", [UserError, DataError])
def test_errors_arrive_with_their_hints(kind: type[UserError] | type[DataError]):
    arrived = decode(encode(kind("no such file", "look elsewhere")))
    assert type(arrived) is kind
    assert (arrived.message, arrived.hint) == ("no such file", "look elsewhere")


@pytest.mark.parametrize("value", [object(), {1: 2}, b"bytes", {"a": {1, 2}}])
def test_other_values_are_refused_where_they_are_sent(value: object):
    with pytest.raises(TypeError, match="ranks cannot send each other"):
        encode(value)


def test_a_pickle_is_not_read():
    with pytest.raises((json.JSONDecodeError, UnicodeDecodeError)):
        decode(pickle.dumps({"a": 1}))
