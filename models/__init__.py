"""DLRM for any embedding module that is handed to it."""

from models.dlrm import DLRM, DenseNetwork

__all__ = ["DLRM", "DenseNetwork"]
