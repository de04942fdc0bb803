"""Compresses trained tables with a method, to a ratio, or within an NE budget (`dlrmctl compress-embeddings`).

`request` checks the request, `sources` opens trained tables, `fitting` fits the options of each table, `search` chooses
by evaluation (`trial`), `compression` holds and writes the result, `finetune` trains it on fresh data, and `expand`
writes plain tables.
"""
