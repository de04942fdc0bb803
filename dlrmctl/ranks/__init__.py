"""Processes and their state: `launch` runs a function on ranks, `rank` is one of them, `ranks` joins them to a group.

`process` sets what they share with libraries, `signals` handles SIGTERM and Ctrl-C while work lasts.
"""
