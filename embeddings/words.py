"""The names of embeddings, operations and layouts; settings use them too, so nothing is imported here."""

EMBEDDINGS = ("full", "hash", "qr", "kway", "crt", "head", "double-hash")
OPERATIONS = ("mult", "add", "concat", "features", "path")
# The operations of each embedding; the others have one row per id, or add two.
OPERATIONS_OF = {"qr": OPERATIONS, "kway": OPERATIONS[:4], "crt": OPERATIONS[:4], "head": OPERATIONS[:3]}
QR_LAYOUTS = ("quotient", "remainder")
# Ids are sorted by frequency: with a large quotient table, the most frequent ones would share rows with each other.
QR_LAYOUT = "remainder"
TAILS = ("hash", "qr")
QR_THRESHOLD = 100_000
SHARDINGS = ("auto", "table_wise", "row_wise")
# FBGEMM's CUDA kernels also take 8-bit floats, which TorchRec's tables do not, and no bfloat16.
TABLE_PRECISIONS = ("fp32", "fp16")
PLACEMENTS = ("hbm", "uvm", "auto")
