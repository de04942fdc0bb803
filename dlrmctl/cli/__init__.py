"""The command line: one file per group of commands.

These files must not load torch: a command imports its worker when it runs.
"""
