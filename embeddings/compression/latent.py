"""Codes that are trained together with their codebooks.

A code is an integer and has no gradient. So each id that is coded also has a latent row of float32, which begins as the
trained row. Scores are computed from the codes; the gradient of what they give goes to the codebooks and, unchanged, to
the latent row. After each step the rows that moved take the codes nearest to them.
Dimensions: N rows, D columns; L codes per row, K rows in each codebook.
"""

import torch
from torch import Tensor, nn

from dlrmctl.embeddings.compression.fits.codebook import Codebooks
from dlrmctl.embeddings.compression.rules.headed import Headed
from dlrmctl.embeddings.compression.rules.quantize import CHUNK_VALUES
from dlrmctl.embeddings.compression.rules.rows import Compressed
from dlrmctl.embeddings.compression.rules.sharing import Codes


class LatentCodes(Codes):
    """Codes with latent rows, for training.

    Args:
        codes: the trainable copy of a table of codes, which is taken over.
        rows_ND: the rows that were coded, float32.
    """

    def __init__(self, codes: Codes, rows_ND: Tensor) -> None:
        super().__init__(codes.codes, codes.codebook, codes.size, codes.operation)
        self.latent = nn.Parameter(rows_ND)

    def forward(self, ids: Tensor) -> Tensor:
        latent_ND = nn.functional.embedding(ids, self.latent, sparse=True)
        return super().forward(ids) + (latent_ND - latent_ND.detach())

    @torch.no_grad()
    def code_again(self, ids: Tensor) -> None:
        """Improves the codes of these ids, int64 [n] without repetition, for their latent rows.

        Codes change one at a time, and only to nearer ones.
        """
        books = Codebooks(self.codebook.values.detach().view(self.num_codes, self.size, -1), self.operation)
        found = books.encode(self.latent.index_select(0, ids), self.codes.index_select(0, ids).long())
        self.codes.index_copy_(0, ids, found.to(self.codes.dtype))


def with_latent_rows(twin: Compressed, original: Compressed) -> Compressed:
    """Gives the codes of a trainable copy latent rows.

    Args:
        twin: the copy, which is changed; returned as it is if it has no codes.
        original: the trained table.
    """
    if isinstance(twin, Codes):
        return LatentCodes(twin, _rows(original, torch.arange(twin.num_rows)))
    if isinstance(twin, Headed) and isinstance(twin.tail, Codes):
        ids = torch.arange(twin.num_rows)
        in_head, _ = twin.place(ids)
        twin.tail = LatentCodes(twin.tail, _rows(original, ids[~in_head]))
    return twin


def latent_state(twin: Compressed, sums: Tensor) -> Tensor:
    """Returns the state of row-wise AdaGrad of the latent rows, given that of the trained table."""
    if not isinstance(twin, Headed):
        return sums.clone()
    in_head, _ = twin.place(torch.arange(twin.num_rows))
    return sums[~in_head]


def _rows(table: Compressed, ids: Tensor) -> Tensor:
    rows_ND = torch.empty(len(ids), table.dim)
    with torch.no_grad():
        for part in torch.arange(len(ids)).split(max(1, CHUNK_VALUES // table.dim)):
            rows_ND[part] = table(ids[part])
    return rows_ND
