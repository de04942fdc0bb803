"""From raw values to rows of tables, and everything that scoring raw rows needs besides a model.

`encoders` turn values into rows, by a vocabulary (`lookup`), a hash, or as they are; `columns` describes their files,
each a `kept_array`. `kept_texts` are the texts of values, which `text_writer` writes. `space.FeatureSpace` has the
encoders of all columns, the schema and the format of the raw rows; a store has one, and `save` writes it to a
directory.
"""
