import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.fits.quality import measure
from dlrmctl.embeddings.compression.fits.trained import TableRows
small = torch.randn(5000, 16)
rows = 1_000_000
def run(weight, importance):
    table = TableRows(weight, importance)
    fitted = Method.parse(sys.argv[1]).fit(table)
    measure(table, fitted)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
run(small, torch.ones(5000))    # code and libraries are loaded
weight, importance = torch.randn(rows, 16), torch.rand(rows).add_(0.1)
before = peak()
run(weight, importance)
print((peak() - before) / (weight.numel() * 4))
"""


@pytest.mark.parametrize("method", ["int8", "qr-mult16", "rq2x256", "head2%+rq1x256"])
def test_a_million_rows_take_less_than_once_more_their_memory(method: str):
    done = subprocess.run([sys.executable, "-c", PROGRAM, method], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.0
