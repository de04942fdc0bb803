import pytest
import torch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantEmbeddingBagCollection

from dlrmctl.embeddings.compression.artifact import Writer
from dlrmctl.embeddings.compression.fits.methods import Method
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.rows import Compressed, StoredRows
from dlrmctl.embeddings.compression.torchrec_bags import read_tables, serving_bags, training_bags
from tests.embeddings.compression.tables import table_rows
from tests.embeddings.reference import Bags, to_kjt

METHODS = {
    **{"rows.8": "int8", "rows4": "int4-search", "rows2": "int2", "half": "fp16", "whole": "fp32"},
    **{"hash": "hash8-int4", "add": "qr-add8", "codes": "rq3x32", "head": "head2%+rq2x32"},
    "heads": "head10%-int4+hash4-int8",
}
ROWS = 500


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compressed]:
    path = tmp_path_factory.mktemp("tables") / "small"
    with Writer(path, source={}) as writer:
        for name, method in METHODS.items():
            writer.add(name, Method.parse(method).fit(table_rows(ROWS)))
    return read_tables(path)


def bags_of(names: list[str], batch_size: int, seed: int = 0) -> Bags:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(5, (len(names), batch_size), generator=generator).tolist()
    return {
        name: [torch.randint(ROWS, (size,), generator=generator).tolist() for size in of_name]
        for name, of_name in zip(names, sizes, strict=True)
    }


@pytest.mark.parametrize("opened", [training_bags, serving_bags])
def test_multi_hot_bags_are_sums_of_the_rows_that_were_compressed(tables: dict[str, Compressed], opened):
    module, bags = opened(tables), bags_of(list(tables), 20)
    found = module(to_kjt({"other": [[1]] * 20, **bags})).to_dict()
    for name, table in tables.items():
        whole = table.expand().double()
        expected = torch.stack([whole[bag].sum(0) for bag in bags[name]])
        # Sums of at most 4 rows of 3 parts, float32 numbers below 4.
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("opened", [training_bags, serving_bags])
def test_tables_of_another_size_keep_their_precision(opened):
    rows = 1e-7 * table_rows(ROWS).weight  # too small for float16, so they are stored times a power of two
    table = Method.parse("int8").fit(TableRows(rows, torch.ones(ROWS)))
    assert isinstance(table, StoredRows)
    assert table.exponent != 0
    bags = bags_of(["t"], 20)
    found = opened({"t": table})(to_kjt(bags)).to_dict()["t"]
    expected = torch.stack([table.expand()[bag].sum(0) for bag in bags["t"]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12)


def test_served_are_the_stored_bytes_without_fill(tables: dict[str, Compressed]):
    module = serving_bags({"rows.8": tables["rows.8"]})
    assert isinstance(module.bags, QuantEmbeddingBagCollection)
    (kernel,) = module.bags._emb_modules
    assert 0 <= kernel.weights_host.numel() - 20 * ROWS < 128  # a whole table is filled up to its lines


def test_training_moves_the_numbers_of_ordinary_tables(tables: dict[str, Compressed]):
    module, kjt = training_bags(tables), to_kjt(bags_of(list(tables), 300))
    assert isinstance(module.bags, EmbeddingBagCollection)
    fixed = {name: value.clone() for name, value in module.expansion.state_dict().items()}
    before = module(kjt).values().detach()
    module(kjt).values().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.bags.parameters())
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    assert float(module(kjt).values().detach().square().sum()) < float(before.square().sum())
    assert all(torch.equal(value, fixed[name]) for name, value in module.expansion.state_dict().items())
    assert not list(module.expansion.parameters())


@pytest.mark.parametrize("method", ["pca4-int8", "qr-mult8", "qr-concat8", "pq4x16", "head2%+pca4"])
def test_rows_that_are_not_sums_are_refused_with_the_way_that_works(method: str):
    table = Method.parse(method).fit(table_rows(ROWS))
    with pytest.raises(ValueError, match=r"table t: rule '.*' is not a sum of rows; composed.compose"):
        training_bags({"t": table})


def test_columns_without_a_kernel_are_refused():
    table = Method.parse("int2").fit(table_rows(50, 12))
    with pytest.raises(ValueError, match="12 columns of 2 bits"):
        serving_bags({"t": table})


def test_a_missing_feature_is_told(tables: dict[str, Compressed]):
    with pytest.raises(ValueError, match=r"the batch has no feature 'rows.8'"):
        training_bags(tables)(to_kjt(bags_of(["half"], 3)))
