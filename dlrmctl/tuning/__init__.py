"""Searches for better settings (`dlrmctl tune`).

`space` says which settings are searched, `study` keeps the trials with Optuna, `trial` trains one of them on all ranks,
`tune` runs the search and compares its best settings with the default, `pictures` draws it.
"""
