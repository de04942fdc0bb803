"""Writes a model as one file that any process with torch can load and score with (`dlrmctl export`).

`graph` is the model with plain lookups, `program` its torch.export file, `metadata` what a caller must know,
`agreement` and `check` compare its answers with the run's.
"""
