"""Bytes to batches: raw files -> a prepared store -> `Batch`. Knows rank and world size as numbers only.

`formats` reads raw files into pieces of rows, `features` maps their values to rows of tables, `preparation` turns
pieces into a store, `store` writes and reads the store's blocks, `synthetic` makes blocks without files. A `Source`
(store or generator) gives blocks; `reader.Reader` shuffles them, cuts this rank's share, and gives `batch.Batch`es.
"""
