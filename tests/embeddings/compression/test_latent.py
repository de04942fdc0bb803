import pytest
import torch

from dlrmctl.embeddings.compression.adagrad import RowwiseAdagrad, Trained
from dlrmctl.embeddings.compression.fits.kmeans import nearest
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.latent import LatentCodes, latent_state, with_latent_rows
from dlrmctl.embeddings.compression.rules.pack import stored_like
from dlrmctl.embeddings.compression.rules.rows import StoredRows
from tests.embeddings.compression.tables import table_rows

ROWS, DIM = 300, 8


@pytest.mark.parametrize("name", ["rq1x16", "rq2x8", "pq2x8-int8", "head10%+rq1x16"])
def test_rows_that_move_get_the_codes_nearest_to_them(name: str):
    rows = table_rows(ROWS, DIM)
    table, original = Method.parse(name).fit(rows), StoredRows(rows.weight, DIM, 32)
    twin = with_latent_rows(table.trainable(sparse=True), original)
    (codes,) = (module for module in twin.modules() if isinstance(module, LatentCodes))
    ids = torch.arange(ROWS)
    assert torch.equal(twin(ids), table.trainable()(ids))
    assert codes.latent.shape == (codes.num_rows, DIM)

    sums = torch.full((ROWS,), 0.5)
    trained = Trained(codes.latent, latent_state(twin, sums), 1.0, codes.code_again)
    before, latent = codes.codes.clone(), codes.latent.detach().clone()
    moved = ids[(ids % 7 == 0) & ~_in_head(twin, ids)]
    wanted = rows.weight[(moved + 101) % ROWS]
    for _ in range(3):
        (twin(moved) - wanted).square().sum().backward()
        RowwiseAdagrad([trained]).step()
    changed = (codes.codes != before).any(1)
    assert 10 < int(changed.sum()) <= len(moved)
    assert torch.equal((codes.latent.detach() != latent).any(1), torch.isin(_tail_ids(twin, ids), moved))
    if name.endswith("rq1x16"):
        assert torch.equal(codes.codes[changed].long()[:, 0], nearest(codes.latent.detach(), _book(codes))[changed])

    stored = stored_like(twin, table)
    assert stored.num_bytes == table.num_bytes
    assert stored.spec() == table.spec()
    # Rows of codebooks that did not move keep their bits.
    torch.testing.assert_close(stored(ids), twin(ids), rtol=0, atol=0)


def _in_head(twin, ids: torch.Tensor) -> torch.Tensor:
    return twin.place(ids)[0] if hasattr(twin, "head") else torch.zeros(len(ids), dtype=torch.bool)


def _tail_ids(twin, ids: torch.Tensor) -> torch.Tensor:
    return ids[~_in_head(twin, ids)]


def _book(codes: LatentCodes) -> torch.Tensor:
    return codes.codebook.values.detach()


@pytest.mark.parametrize("name", ["int8", "int4", "int2", "pca3-int4"])
def test_rounded_rows_are_computed_with_as_they_are_stored(name: str):
    table = Method.parse(name).fit(table_rows(ROWS, DIM))
    twin = table.trainable(sparse=True, rounded=True)
    ids, wanted = torch.arange(0, ROWS, 3), torch.randn(100, DIM, generator=torch.Generator().manual_seed(0))
    (twin(ids) * wanted).sum().backward()
    rows = next(module for module in twin.modules() if isinstance(module, StoredRows))
    assert rows.values.grad is not None
    if name != "pca3-int4":  # gradients pass through the rounding
        assert torch.equal(rows.values.grad.to_dense()[ids], wanted)
    with torch.no_grad():
        rows.values[ids] += 0.3 * torch.randn(100, rows.dim, generator=torch.Generator().manual_seed(1))
    assert torch.equal(twin(ids), stored_like(twin, table)(ids))
    plain = table.trainable()
    assert not torch.equal(plain(ids), twin(ids))
