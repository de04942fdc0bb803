"""Methods that approximate a trained table, and how good the result is.

`methods.Method` parses a name such as "pca8-int4" and calls the fit; `trained.TableRows` is the table as fits read it,
chunk by chunk, with the importance of its rows; `quality` measures what was lost.
"""
