"""How many ids the sparse features of synthetic data have, by the name of a size; and how often dense ones are missing.

Nothing here needs NumPy.
"""

# fmt: off
CARDINALITIES = (3, 4, 5, 8, 10, 10, 15, 20, 20, 30, 30, 50, 50, 100, 100, 100, 200, 300, 500,
                 1000, 2000, 3000, 5000, 5000, 10000, 10000)
# Distinct values per categorical column of Criteo's Kaggle data set, as counted by facebookresearch/dlrm: 33,762,577.
KAGGLE = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10,
          5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572)
# fmt: on
_MEDIUM_LARGEST = 200_000
SIZES = {
    "small": CARDINALITIES,
    "medium": tuple(min(ids, _MEDIUM_LARGEST) for ids in KAGGLE),
    "kaggle": KAGGLE,
}
# fmt: off
# Criteo's 1TB data with at most 40 million rows per table, as the MLPerf training benchmark has it: 204,184,588 rows.
MLPERF = (40_000_000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40_000_000, 3_067_956, 405_282, 10, 2209, 11938,
          155, 4, 976, 14, 40_000_000, 40_000_000, 40_000_000, 590_152, 12973, 108, 36)
# fmt: on


def missing_twentieths(column: int) -> int:
    """How many of 20 values of a dense feature are missing: 0 to 6."""
    return column * 5 % 7
