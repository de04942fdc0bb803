"""Generated rows with a known teacher: a `Source` without files, with the same rows on every rank.

`columns` draws dense and sparse features (by `draws`), `teacher` computes each row's true probability, `synthetic`
makes blocks of them, `criteo_text` writes the same rows as files in Criteo's format. `cardinalities` has the table
sizes.
"""
