"""Methods that approximate a trained table, and measures of their quality.

`methods.Method` parses a name such as "pca8-int4" and calls the fit; `trained.TableRows` gives fits the table, chunk by
chunk, with the importance of its rows; `quality` measures the errors.
"""
