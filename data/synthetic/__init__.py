"""Generated rows with a known teacher: a `Source` without files, the same rows on every rank.

`columns` draws dense and sparse features (`draws`), `teacher` gives each row its true probability, `synthetic` makes
blocks of them, `criteo_text` writes the same rows as files in Criteo's format. `cardinalities` has the table sizes.
"""
