import json

import pytest
import torch
from safetensors.torch import load, save

from dlrmctl.embeddings.compression.fits.methods import Method, default_grid
from dlrmctl.embeddings.compression.fits.quality import measure
from dlrmctl.embeddings.compression.fits.trained import TableRows
from dlrmctl.embeddings.compression.rules.headed import Headed, choose_head, membership
from dlrmctl.embeddings.compression.rules.pack import pack
from dlrmctl.embeddings.compression.rules.quantize import row_bytes
from dlrmctl.embeddings.compression.rules.rows import StoredRows, from_parts
from tests.embeddings.compression.tables import table_rows, weighted_error

NAMES = [
    *("fp32", "fp16", "int8", "int4", "int2", "int4-search", "pca8-fp32", "pca5-int4", "pca16-int2-search"),
    *("hash10-int8", "qr-mult8-int8", "qr-mult8q-fp16", "qr-add8-int4", "qr-concat8-fp16", "qr-concat8q-int8"),
    *("rq1x32", "rq3x32-int8", "rq2x300", "pq4x32", "pq2x32-int4", "head2%+rq2x32", "head10%-fp32+int4"),
    *("head5%-int4+qr-mult8", "head5%+hash20"),
]
ROWS = 2011


@pytest.mark.parametrize("name", NAMES)
def test_every_rule_survives_a_file_bit_by_bit(name: str):
    table = table_rows(ROWS)
    compressed = Method.parse(name).fit(table)
    stored = save({key: part.contiguous() for key, part in compressed.parts().items()})
    header = 8 + int.from_bytes(stored[:8], "little")
    assert compressed.num_bytes == len(stored) - header
    again = from_parts(json.loads(json.dumps(compressed.spec())), load(stored))
    assert again.spec() == compressed.spec()
    assert again.parts().keys() == compressed.parts().keys()
    assert all(torch.equal(part, again.parts()[key]) for key, part in compressed.parts().items())
    assert torch.equal(again.expand(), compressed.expand())


@pytest.mark.parametrize("name", NAMES)
def test_a_lookup_gives_the_rows_of_the_whole_table(name: str):
    compressed = Method.parse(name).fit(table_rows(ROWS))
    whole = compressed.expand()
    assert whole.shape == (ROWS, 16)
    assert whole.dtype == torch.float32
    ids = torch.randint(ROWS, (500,), generator=torch.Generator().manual_seed(0))
    # The same numbers; matrix products of other shapes may round differently, to 8 summands of float32.
    atol = 1e-6 if name.startswith("pca") else 0
    assert torch.allclose(compressed.lookup(ids), whole[ids], rtol=0, atol=atol)
    pieces = [compressed.expand(start, start + 700) for start in range(0, ROWS, 700)]
    assert torch.allclose(torch.cat(pieces), whole, rtol=0, atol=atol)
    assert compressed.lookup(ids[:0]).shape == (0, 16)


@pytest.mark.parametrize("name", NAMES)
def test_a_trainable_copy_reads_the_same_and_has_gradients(name: str):
    compressed = Method.parse(name).fit(table_rows(ROWS))
    before = {key: part.clone() for key, part in compressed.parts().items()}
    twin = compressed.trainable()
    ids = torch.arange(0, ROWS, 3)
    out = twin(ids)
    assert torch.allclose(out, compressed(ids), rtol=0, atol=1e-6)  # products may be fused with sums
    out.square().sum().backward()
    assert list(twin.parameters())
    assert all(p.dtype == torch.float32 and p.grad is not None and bool(p.grad.any()) for p in twin.parameters())
    assert not list(compressed.parameters())
    assert all(torch.equal(part, before[key]) for key, part in compressed.parts().items())


@pytest.mark.parametrize("name", [*NAMES, *(method.name for method in default_grid(16))])
def test_names_are_read_back(name: str):
    method = Method.parse(name)
    assert Method.parse(method.name) == method


@pytest.mark.parametrize("dim", [4, 16, 64])
def test_the_grid_fits_every_width_and_small_tables(dim: int):
    for rows in (1, 30):
        for method in default_grid(dim):
            compressed = method.fit(table_rows(rows, dim))
            assert compressed.expand().shape == (rows, dim)


def test_more_bytes_are_closer():
    table = table_rows(4000)
    for family in (["fp16", "int8", "int4", "int2"], ["rq4x64", "rq2x64", "rq1x64"], ["pca6-fp16", "pca3-fp16"]):
        fits = [Method.parse(name).fit(table) for name in family]
        sizes = [fit.num_bytes for fit in fits]
        errors = [weighted_error(table, fit.expand()) for fit in fits]
        assert sizes == sorted(sizes, reverse=True)
        assert errors == sorted(errors)


def test_pca_is_the_best_subspace():
    table = table_rows(3000, kind="uniform")
    error = weighted_error(table, Method.parse("pca3-fp32").fit(table).expand())
    centered = table.weight.double() - table.weight.double().mean(0)
    # Float32 coordinates and basis.
    assert error == pytest.approx(float(torch.linalg.svdvals(centered)[3:].square().sum()), rel=1e-4)


def test_weights_lower_the_weighted_error_of_pca():
    table = table_rows(3000)
    even = TableRows(table.weight, torch.ones(3000))
    errors = [weighted_error(table, Method.parse("pca3-fp32").fit(t).expand()) for t in (table, even)]
    assert errors[0] < errors[1]


def test_turned_coordinates_halve_the_error_of_four_bits():
    table = table_rows(4000)
    plain, turned = (Method.parse(name).fit(table) for name in ("int4", "pca16-int4"))
    assert turned.num_bytes - plain.num_bytes == 16 * 16 * 4 + 16 * 4  # basis and mean
    assert weighted_error(table, turned.expand()) < 0.5 * weighted_error(table, plain.expand())


def test_a_head_keeps_its_rows_and_saves_the_weighted_error():
    table = table_rows(5000)
    plain, headed = (Method.parse(name).fit(table) for name in ("rq1x64", "head2%-fp32+rq1x64"))
    assert isinstance(headed, Headed)
    heavy = (table.weights > torch.topk(table.weights, 100).values[-1]).nonzero().squeeze(1)
    assert len(heavy) > 80  # the others are tied
    assert torch.equal(headed.lookup(heavy), table.weight[heavy])
    assert weighted_error(table, headed.expand()) < 0.5 * weighted_error(table, plain.expand())
    blocks = -(-5000 // 256)
    assert headed.num_bytes == 100 * 64 + 4900 + 64 * 20 + blocks * (32 + 4)


def test_ids_sorted_by_weight_need_no_bitmap():
    table = table_rows(5000)
    order = table.weights.argsort(descending=True)
    sorted_table = TableRows(table.weight[order], table.weights[order])
    headed = Method.parse("head2%-fp32+rq1x64").fit(sorted_table)
    assert not headed.spec()["bitmap"]
    assert torch.equal(headed.expand(0, 100), sorted_table.weight[:100])


@pytest.mark.parametrize("rows", [2, 255, 256, 257, 3000])
def test_every_id_finds_its_own_row_through_a_bitmap(rows: int):
    values = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 4).contiguous()
    for share in (0.01, 0.5, 0.99):
        heads = min(rows - 1, max(1, round(share * rows)))
        chosen = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))[:heads].sort().values
        rest = torch.ones(rows, dtype=torch.bool)
        rest[chosen] = False
        headed = Headed(pack(values[chosen], 32), pack(values[rest], 32), *membership(chosen, rows))
        assert torch.equal(headed.expand(), values)
        assert torch.equal(headed(torch.arange(rows).flip(0)), values.flip(0))


def test_the_heaviest_rows_are_chosen():
    weights = torch.tensor([1.0, 5.0, 2.0, 9.0])
    assert choose_head(weights, 2).tolist() == [1, 3]
    assert choose_head(torch.tensor([9.0, 5.0, 2.0, 1.0]), 2) is None


def test_a_constant_table_and_one_row_work_with_every_method():
    for rows, value in ((1, 0.5), (300, 0.5), (300, 0.0)):
        weight = torch.full((rows, 16), value)
        table = TableRows(weight, torch.ones(rows))
        for name in NAMES:
            expanded = Method.parse(name).fit(table).expand()
            # Half precision keeps .5; quotient and remainder come from float32 sums.
            assert torch.allclose(expanded, weight, rtol=0, atol=1e-3), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(value: float):
    weight = torch.zeros(100_000, 16)
    weight[70_001, 3] = value
    weight[80_000, 3] = value
    table = TableRows(weight, torch.ones(100_000), name="cat_3")
    with pytest.raises(ValueError, match="table cat_3: row 70,001 holds a value that is not finite"):
        Method.parse("int8").fit(table)


def test_damaged_parts_are_refused():
    compressed = Method.parse("head5%+rq2x32").fit(table_rows(ROWS))
    spec, parts = compressed.spec(), compressed.parts()
    codes = parts["tail.codes"].clone()
    codes[5, 1] = 32
    cut = {key: part for key, part in parts.items() if key != "tail.codes"}
    for wrong, message in [
        ({**parts, "tail.codes": codes}, "codes from 0 to 32 for codebooks of 32"),
        ({**parts, "tail.codes": parts["tail.codes"][1:]}, "codes of shape"),
        ({**parts, "head.values": parts["head.values"][:, 1:]}, "19,|19\\)"),
        ({**parts, "bitmap": parts["bitmap"] ^ 1}, "bitmap of"),
        ({**parts, "ranks": parts["ranks"] + 1}, "ranks"),
        ({**parts, "other": codes}, "other does not belong"),
        (cut, "'codes' is missing"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_parts(spec, wrong)
    with pytest.raises(ValueError, match="rule='magic' is unknown"):
        from_parts({"rule": "magic"}, parts)


def test_bad_names_are_told():
    for name in ("int3", "rq2", "head2%", "qr-times4", "pca", "head120%+int8", "rq0x256"):
        with pytest.raises(ValueError, match=r"must be|unknown"):
            Method.parse(name)
    with pytest.raises(ValueError, match="from 1 to 16"):
        Method.parse("pca17-int8").fit(table_rows(50))


def test_quality_is_zero_for_the_same_table_and_counts_what_differs():
    table = table_rows(500)
    same = measure(table, Method.parse("fp32").fit(table))
    assert (same.weighted_error, same.relative_error, same.distortion_max) == (0, 0, 0)
    doubled = measure(table, StoredRows(table.weight * 2, 16, 32))
    norm = float((table.weight.double().square().sum(1) * table.weights).sum())
    assert doubled.weighted_error == pytest.approx(norm, rel=1e-5)  # sums of float32 numbers
    assert doubled.weighted_relative_error == pytest.approx(1)
    assert doubled.relative_error == pytest.approx(1)
    # Twice the length, four times the square.
    assert doubled.distortion_median == pytest.approx(3, rel=1e-3)
    assert doubled.distortion_max == pytest.approx(3, rel=1e-3)
    assert row_bytes(16, 32) == 64
