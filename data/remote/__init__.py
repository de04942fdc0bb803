"""Files on other machines, named by URLs: read in order or anywhere, and written whole; through fsspec."""
