"""`python -m dlrmctl`: what the launcher starts; people use the installed `dlrmctl`."""

from dlrmctl.cli.main import main

main()
