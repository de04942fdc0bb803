"""Makes trained tables smaller: by a method, to a ratio, or within a limit on NE (`dlrmctl compress-embeddings`).

`request` is what was asked, `sources` the trained tables, `fitting` the options for each table, `search` the choice by
evaluation (`trial`), `compression` the result; `finetune` trains it on fresh data, `expand` makes plain tables again.
"""
