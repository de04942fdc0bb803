"""The settings of a run: one line per setting, checked and completed, from flags and TOML.

`setting` defines what one setting is, `config` and `embeddings` list them, `toml` reads files, `parse` reads numbers,
shares and lists that are typed.
"""
