"""Raw files -> `raw.RawPiece`: Criteo's text; CSV, JSON lines, Parquet and Arrow files; NumPy arrays.

`sources` finds the files of a pattern, `texts` and `streams` open what is inside (plain, gzip, archives, pipes),
`lines` cuts text into pieces. Each format is a `raw.Input`: it lists pieces as tasks and reads one at a time, with bad
lines counted and described. `transforms` has the formulas of dense values.
"""
