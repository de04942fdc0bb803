"""Measures ratios (`dlrmctl bench`) between variants that are alternated in one run, beside the machine's limits.

`measurements` checks the options and runs one of `step`, `shampoo`, `convergence`, `embeddings` and `data`; `delivery`
writes results, `against` compares two of them, `pictures` draws them.
"""
