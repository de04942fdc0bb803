"""Smaller tables made from trained ones: fits, the rules that read them, and files that keep them."""
