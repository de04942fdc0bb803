"""`python -m dlrmctl`: what the launcher starts; people use the installed `dlrmctl`."""

from dlrmctl.entry import main

main()
