"""Prepares a store from raw pieces: in bounded memory, on all cores, resumable after a kill.

Phases, in order: `parsing` writes pieces into `parts`; `dense` fits the dense features; `counting` and `encoding` turn
the values of each sparse column into rows, or `reuse` takes those of another store; `writing` writes the blocks of the
store. `prepare` runs them, `unfinished` records their progress, `tally` counts, `report` describes the result.
"""
