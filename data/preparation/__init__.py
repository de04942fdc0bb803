"""Raw pieces -> a store, in bounded memory, by all cores, resumable after a kill.

Phases, in order: `parsing` writes pieces into `parts`; `dense` fits the dense features; `counting` and `encoding` turn
the values of each sparse column into rows, or `reuse` takes those of another store; `writing` puts the blocks into the
store. `prepare` runs them, `unfinished` records how far they are, `tally` counts, `report` says what was found.
`new_rows` takes raw rows through the encoders of a data set, for scoring.
"""
