"""Entry point of `python -m dlrmctl`, which the launcher uses to start ranks."""

from dlrmctl.cli.main import main

main()
