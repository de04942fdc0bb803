"""Trained tables made smaller, stored, and looked up again.

`fits` approximates a table by a method, `rules` says how the result is stored and gives rows back, `isometry` finds
maps that keep distances, `frontier` chooses a method per table for a size or an error, `artifact` reads and writes
directories, `composed` is the embedding module over compressed tables, `adagrad` trains them further.
"""
