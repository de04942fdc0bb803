"""Settings that must stand before torch is loaded."""

import os

# Tests run side by side: threads of one that wait busily would hold up the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "2")
