"""The settings of a run: one line per setting, checked and completed, from flags and TOML.

`setting` defines a single setting, `config` and `embeddings` list them, `toml` reads and writes files, and `parse`
reads numbers, fractions and lists from the command line.
"""
