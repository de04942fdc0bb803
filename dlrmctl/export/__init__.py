"""Writes a model as one file that any process with torch can load and score with (`dlrmctl export`).

`graph` is the model with plain lookups, `program` its torch.export file, `metadata` describes it for callers, `bundle`
adds the features of the run. `agreement`, `raw_rows` and the scripts `check` and `check_bundle` compare scores with the
run's. `vectors` writes the vectors of values.
"""
