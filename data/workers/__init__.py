"""Runs the tasks of a preparation: in threads, in processes of this machine, or on a Dask cluster.

A task is a call of a plain function, and may run twice: its files are complete or written again. `pool` has the threads
and what all share, `processes` starts `child` processes, `cluster` uses an existing scheduler.
"""
