"""Examines packages, devices and the machine, and names the command that fixes each problem (`dlrmctl doctor`)."""
