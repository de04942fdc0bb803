"""DLRM for any embedding module that is handed to it: bottom MLP, interaction, top MLP."""

from dlrmctl.models.dlrm import DLRM, DenseNetwork

__all__ = ["DLRM", "DenseNetwork"]
