"""From raw values to rows of tables, and all that scoring raw rows needs, without the examples.

`encoders` turn values into rows, by a vocabulary (`lookup`), a hash, or as they are; `columns` describes the files that
keep them, each a `kept_array`. `kept_texts` are the values as people know them, which `text_writer` writes.
`space.FeatureSpace` holds the encoders of all columns with the schema and the format of the raw rows; a store has one,
and `save` writes it to a directory of its own.
"""
