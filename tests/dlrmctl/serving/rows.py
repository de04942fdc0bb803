"""Rows of a table with every kind of column, and values that are easily read in two ways."""

import csv
import json
import random
from pathlib import Path
from typing import Any

SCHEMA = """label = "clicked"
dense = ["age", "price", "tenure", "days", "score"]
sparse = ["user", "item", "code", "tags", "tags2", "age_bucket", "user_hour", "item2"]
list_separator = "|"
[columns.price]
transform = "sqrt"
clip = [0, 1000]
[columns.score]
transform = "none"
missing = ["-1", "none"]
[columns.visited]
parts = ["minute", "hour", "weekday", "day", "week", "month", "quarter", "year"]
epoch = "seconds"
[columns.tenure]
column = "visited"
since = "joined"
unit = "hours"
[columns.days]
column = "joined"
since = "2020-01-01"
[columns.code]
type = "string"
[columns.item]
type = "integer"
[columns.item2]
column = "item"
[columns.tags]
max_ids = 3
truncate = "last"
[columns.tags2]
column = "tags"
max_ids = 2
truncate = "first"
pooling = "mean"
weights = "tag_weights"
[columns.age_bucket]
column = "age"
buckets = 5
[columns.user_hour]
cross = ["user", "visited_hour"]
"""
COLUMNS = ("age", "price", "visited", "joined", "score", "user", "item", "code", "tags", "tag_weights")
AGES = ("", "33", "33.0", "3.3e1", "0", "-2", "NA", "null", "true", "+7", ".5", "00012", "1e-400", "90")
PRICES = ("", "1", "9.99", "1000", "5e4", "-3", "0.1", "65504", "NaN")
SCORES = ("", "-1", "-1.0", "none", "0.25", "-3.75", "1e3", "false")
VISITS = ("", "1717000000", "1717000000.5", "2024-05-29T16:26:40", "2024-05-29 18:26:40+02:00", "2023-12-31", "NA")
JOINED = ("", "2024-05-29", "2019-03-01T12:00", "2024-02-29T23:59:59.999999Z", "nan")
USERS = (
    "u1",
    "u2",
    "007",
    "7",
    "7.0",
    "7.00",
    "+7",
    "5e1",
    "5e+1",
    "50",
    "1.50",
    "1.5",
    "true",
    "1",
    "TRUE",
    "-0.0",
    "0",
)
MORE_USERS = (
    "",
    "NA",
    "2024-05-01T00:00:00",
    "2024-05-01",
    "inf",
    "Infinity",
    " u1",
    "ü",
    "12345678901234567890",
    "09:30",
)
ITEMS = ("", "1", "1.0", "-5", "18446744073709551615", "9223372036854775808", "1e+2", "100", "true")
CODES = ("", "1", "1.0", "01", "true", "True", "é", "NA")
WEIGHTS = ("0", "1", "-2.5", "1e-3", "0.1", "30")
TAGS = ("", "a", "a|b", "a|b|c|d", "1|1.0|2", "|a||", "NA|a", "x|y")


def random_row(random_: random.Random) -> dict[str, str]:
    """Returns a row as fields of a text file."""
    choices = (AGES, PRICES, VISITS, JOINED, SCORES, (*USERS, *MORE_USERS), ITEMS, CODES, TAGS)
    row = {name: random_.choice(values) for name, values in zip(COLUMNS, choices, strict=False)}
    count = len(row["tags"].split("|")) if row["tags"] else 0
    return {**row, "tag_weights": "|".join(random_.choice(WEIGHTS) for _ in range(count))}


def write_rows(path: Path, count: int, seed: int = 0) -> None:
    """Writes rows with labels as CSV."""
    random_ = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("clicked", *COLUMNS))
        writer.writeheader()
        for _ in range(count):
            row = random_row(random_)
            writer.writerow({"clicked": int(random_.random() < 0.2 + 0.5 * (row["user"] in USERS)), **row})


def as_json(row: dict[str, str], random_: random.Random) -> dict[str, Any]:
    """Returns the row as a client may write it: numbers, Booleans, lists and null where the texts allow it."""

    def value(text: str) -> Any:
        if not text:
            return random_.choice(("", None))
        try:
            number = json.loads(text)
        except ValueError:
            return text
        return number if str(number) == text and random_.random() < 0.7 else text

    found = {name: value(text) for name, text in row.items()}
    for name in ("tags", "tag_weights"):
        if row[name] and random_.random() < 0.7:
            found[name] = [value(text) for text in row[name].split("|")]
    return found
