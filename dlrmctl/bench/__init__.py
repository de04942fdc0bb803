"""Measures ratios between variants that are alternated in one run, and the machine's limits (`dlrmctl bench`).

`measurements` checks the options and runs one of `step`, `shampoo`, `convergence`, `embeddings`, `data` and `baseline`;
`delivery` writes results, `against` compares two of them, `pictures` draws them.
"""
