"""DLRM around any embedding module: bottom MLP, interaction, top MLP."""

from dlrmctl.models.dlrm import DLRM, DenseNetwork

__all__ = ["DLRM", "DenseNetwork"]
