"""The command line: one file per group of commands, each flag checked and handed to one call.

Files here load no torch: a command imports its worker when it runs.
"""
