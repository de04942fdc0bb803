"""Compression of trained tables: fitting, storage and lookups.

`fits` approximates a table with a method, `rules` stores the result and reads rows from it, `isometry` finds maps that
keep distances, `frontier` chooses a method per table for a size or an error, `artifact` reads and writes directories,
`composed` is the embedding module over compressed tables, `adagrad` continues their training.
"""
