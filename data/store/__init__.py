"""The prepared data set on disk: `manifest.json`, and per split a file of blocks and a table of their places.

`layout` says where a block's columns lie, `manifest` what the files hold, `writer` writes, `store.Store` reads and
checks. `encoders` turn raw values into rows of tables, by a vocabulary (`lookup`), a hash, or as they are.
"""
