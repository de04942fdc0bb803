"""Scores raw rows with an exported model, in Python and over HTTP (`dlrmctl serve`).

    from dlrmctl.serving import Scorer

    Scorer("model.dlrm").score([{"user": "u17", "item": 3, "price": 9.5}])

`Scorer` needs torch and NumPy alone. `bundle` is the file, `program` the model in it, `rows`, `columns` and `values`
read raw values, `vocabulary` finds their rows.
"""

from dlrmctl.serving.errors import BundleError, RowError
from dlrmctl.serving.scorer import Scorer

__all__ = ["BundleError", "RowError", "Scorer"]
