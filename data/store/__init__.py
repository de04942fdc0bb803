"""A prepared data set on disk: `manifest.json`, and per split a file of blocks and a table of their places.

`layout` defines the bytes of blocks, `manifest` describes the files, `writer` writes, `store.Store` reads and checks.
`features.columns` describes the vocabularies and counts beside the blocks.
"""
