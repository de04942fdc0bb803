"""`dlrmctl doctor`: what is wrong with this installation or machine, and the command that mends it."""
