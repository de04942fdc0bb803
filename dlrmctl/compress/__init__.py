"""`dlrmctl compress-embeddings`: smaller tables after training, for a method, a ratio, or a limit on the loss of NE.

`request` is what was asked, `sources` the trained tables, `fitting` the options for each table, `search` the choice by
evaluation (`trial`), `compression` the result; `finetune` trains it on fresh data, `expand` makes plain tables again.
"""
