"""`dlrmctl doctor`: packages, devices and the machine examined, with the command that fixes each problem."""
