"""DLRM: dense inputs -> bottom MLP and embeddings -> interaction -> top MLP -> logit.

The dense network is a separate module because it trains differently: it is replicated on every rank, while the
embedding module may be sharded over ranks.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlrmctl.models.inputs import NormalizedInputs, RawInputs
from dlrmctl.models.interaction import (
    INTERACTIONS,
    CatInteraction,
    CrossInteraction,
    DotInteraction,
    Interaction,
)
from dlrmctl.models.mlp import MLP, LearnedVector


class DenseNetwork(nn.Module):
    """The dense part of a DLRM: bottom MLP, interaction, top MLP.

    Args:
        num_dense: I, the dense features; 0 replaces the bottom MLP by one learned vector.
        num_vectors: F, the embedding module's vectors for each example.
        dim: D, the width of the embeddings; must equal the last width of the bottom MLP.
        bottom: widths of the bottom MLP's layers.
        top: widths of the top MLP's layers; the last is 1.
        interaction: "dot", "cat" or "dcn".
        cross_layers, cross_rank: of "dcn"; see `CrossInteraction`.
        layer_norm, dropout: of both MLPs; see `MLP`.
        inputs: transforms the dense features before the bottom MLP; None means no transform.
        first_logit: the bias of the logit before training; None for a random one.
        generator: source of the initial values.

    Shapes:
        dense_BI [B, I], NaN where missing if `inputs` take it, and embeddings_BFD [B, F, D] -> logits [B].

    Raises:
        ValueError: if the widths do not fit together or the interaction is unknown.
    """

    def __init__(
        self,
        *,
        num_dense: int,
        num_vectors: int,
        dim: int,
        bottom: Sequence[int],
        top: Sequence[int],
        interaction: str = "dot",
        cross_layers: int = 3,
        cross_rank: int = 64,
        layer_norm: bool = False,
        dropout: float = 0.0,
        inputs: RawInputs | NormalizedInputs | None = None,
        first_logit: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if bottom[-1] != dim:
            raise ValueError(f"the bottom MLP ends in {bottom[-1]} units but the embeddings have {dim} columns")
        if top[-1] != 1:
            raise ValueError(f"the top MLP ends in {top[-1]} units; a logit is one")
        if interaction not in INTERACTIONS:
            raise ValueError(f"{interaction=} must be one of {', '.join(INTERACTIONS)}")
        self.num_vectors = num_vectors
        self.inputs: nn.Module = inputs or nn.Identity()
        self.bottom: nn.Module
        if num_dense:
            num_inputs = inputs.out_features if inputs else num_dense
            self.bottom = MLP(num_inputs, bottom, layer_norm=layer_norm, dropout=dropout, generator=generator)
        else:
            self.bottom = LearnedVector(dim, generator=generator)
        self.interaction: Interaction
        if interaction == "dcn":
            self.interaction = CrossInteraction(
                num_vectors, dim, layers=cross_layers, rank=cross_rank, generator=generator
            )
        else:
            self.interaction = (DotInteraction if interaction == "dot" else CatInteraction)(num_vectors, dim)
        width = self.interaction.out_features
        self.top = MLP(width, top, last_relu=False, layer_norm=layer_norm, dropout=dropout, generator=generator)
        if first_logit is not None:
            nn.init.constant_(self.top.output.bias, first_logit)

    def forward(self, dense_BI: Tensor, embeddings_BFD: Tensor) -> Tensor:
        return self.top(self.interaction(self.bottom(self.inputs(dense_BI)), embeddings_BFD)).squeeze(1)

    @contextmanager
    def dropping(self, seed: int) -> Iterator[None]:
        """Turns dropout on for the block, which draws the same numbers for the same seed."""
        dropouts = [mlp.dropout for mlp in (self.bottom, self.top) if isinstance(mlp, MLP) and mlp.dropout is not None]
        generator = torch.Generator(next(self.parameters()).device).manual_seed(seed) if dropouts else None
        for dropout in dropouts:
            dropout.generator = generator
        yield
        for dropout in dropouts:
            dropout.generator = None

    @torch.no_grad()
    def dead_units(self, dense_BI: Tensor) -> Tensor:
        """Finds the units of the bottom MLP's last layer that no example activates: dense features are lost there.

        Args:
            dense_BI: [B, I], as for `forward`.

        Returns:
            bool [D].
        """
        return (self.bottom(self.inputs(dense_BI)) == 0).all(dim=0)


class DLRM(nn.Module):
    """A deep learning recommendation model around any embedding module.

    Args:
        embeddings: maps the sparse input, of any type, to [B, F, D].
        dense: the rest of the deep model.
        wide: maps dense features and the sparse input to a term of the logits, [B]; None for no such term.

    Shapes:
        dense_BI [B, I] and sparse -> logits [B].

    Source: Naumov et al., arXiv:1906.00091.
    """

    def __init__(self, embeddings: nn.Module, dense: nn.Module, wide: nn.Module | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.dense = dense
        self.wide = wide

    def forward(self, dense_BI: Tensor, sparse: Any) -> Tensor:
        logits_B: Tensor = self.dense(dense_BI, self.embeddings(sparse))
        return logits_B if self.wide is None else logits_B + self.wide(dense_BI, sparse)
