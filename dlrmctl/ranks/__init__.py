"""Processes: `launch` starts ranks on this machine, `ranks` joins them, `process` sets what they share with libraries."""
