"""Processes: `launch` starts ranks here, `ranks` joins them, `process` sets what they share with libraries."""
