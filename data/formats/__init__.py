"""Raw files -> `raw.RawPiece`: Criteo's text; CSV, JSON lines, Parquet and Arrow files; NumPy arrays.

`sources` finds the files of a pattern, `texts` and `streams` open them (plain, gzip, archives, pipes), `lines` cuts
text into pieces. Each format is a `raw.Input`: it lists pieces as tasks and reads one at a time, counting and
describing bad lines. `transforms` has the formulas of dense values.
"""
