"""Writes a model as one file that any process with torch can load and score with (`dlrmctl export`).

`graph` is the model with plain lookups, `program` its torch.export file, `metadata` describes it for callers,
`agreement` and `check` compare its scores with the run's.
"""
