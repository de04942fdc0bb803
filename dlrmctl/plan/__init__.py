"""`dlrmctl plan`: memory and time of a training before it is launched, on ranks that need not exist."""
