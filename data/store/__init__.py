"""The prepared data set on disk: `manifest.json`, and per split a file of blocks and a table of their places.

`layout` says where a block's columns lie, `manifest` what the files hold, `writer` writes, `store.Store` reads and
checks. The vocabularies and counts beside the blocks are described by `features.columns`.
"""
