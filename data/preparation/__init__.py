"""Raw pieces -> a store, in bounded memory, by all cores, resumable after a kill.

Phases, in order: `parsing` writes pieces into `parts`; `counting` and `encoding` turn the values of each column into
rows; `writing` puts the blocks into the store. `prepare` runs them, `unfinished` records how far they are, `report`
says what was found. `new_rows` takes raw rows through a finished store's encoders, for scoring.
"""
