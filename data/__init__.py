"""From raw files to a prepared store, and from there to batches. Rank and world size are only numbers here.

`formats` reads raw files into pieces of rows, `features` maps their values to rows of tables, `preparation` turns
pieces into a store, `store` writes and reads the store's blocks, `synthetic` makes blocks without files. A `Source`
(store or generator) yields blocks; `reader.Reader` shuffles them, selects this rank's share, and yields
`batch.Batch`es.
"""
