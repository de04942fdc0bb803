"""A small table of every kind of column, and a model of it that trains in a second."""

import random

SCHEMA = """label = "clicked"
dense = ["age", "price"]
sparse = ["user", "item", "tags"]
[columns.tags]
max_ids = 3
truncate = "first"
"""
TRAIN = ["--bottom-mlp", "8", "--top-mlp", "8-1", "--dim", "8", "--batch-size", "64", "--shampoo-frequency", "5"]


def rows_of_a_table(rows: int, seed: int = 0) -> str:
    """CSV with a header: numbers, whole numbers and strings as ids, lists; here and there nothing."""
    random_ = random.Random(seed)
    lines = ["clicked,age,price,user,item,tags"]
    for _ in range(rows):
        tags = "|".join(random_.choices("abcdef", k=random_.randrange(4)))
        age, item = random_.choice(["", str(random_.randrange(90))]), random_.randrange(40)
        label = int(random_.random() < 0.2 + 0.5 * (item % 2))
        lines.append(f"{label},{age},{random_.random():.3f},u{random_.randrange(60)},{item},{tags}")
    return "\n".join(lines) + "\n"
