"""Bytes to batches. Knows rank and world size as numbers, never torch.distributed."""
