"""Processes and their state: `launch` runs a function on ranks, `child` is a rank that it starts, `group` joins them.

`process` sets the state that libraries share, `signals` handles SIGTERM and Ctrl-C.
"""
