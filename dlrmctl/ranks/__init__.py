"""Processes and their state: `launch` runs a function on ranks, `child` is one that it starts, `group` joins them.

`process` sets what they share with libraries, `signals` handles SIGTERM and Ctrl-C while work lasts.
"""
