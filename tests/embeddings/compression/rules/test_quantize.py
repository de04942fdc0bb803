import fbgemm_gpu  # noqa: F401
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrmctl.embeddings.compression.rules.pack import fitting_exponent, pack
from dlrmctl.embeddings.compression.rules.quantize import decode_rows, encode_rows, row_bytes

fbgemm = torch.ops.fbgemm


def _same_values(ours: torch.Tensor, theirs: torch.Tensor, bits: int) -> bool:
    """Equal codes, scales and biases, where a zero may have either sign."""
    split = ours.shape[1] - 4
    numbers = [rows[:, split:].contiguous().view(torch.float16) for rows in (ours, theirs)]
    return torch.equal(ours[:, :split], theirs[:, :split]) and torch.equal(*numbers)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1.0, 100.0])
def test_bytes_are_those_of_fbgemm(bits: int, scale: float):
    rows = torch.randn(500, 16, generator=torch.Generator().manual_seed(bits)) * scale
    rows[7] = rows[7, 0]
    rows[8] = 0
    theirs = fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(rows, bits)
    ours = encode_rows(rows, bits)
    assert _same_values(ours, theirs, bits)
    assert torch.equal(decode_rows(theirs, bits, 16), fbgemm.FusedNBitRowwiseQuantizedSBHalfToFloat(theirs, bits))


def test_a_row_of_16_columns_takes_20_12_and_8_bytes():
    rows = torch.randn(5, 16)
    for bits, expected in ((8, 20), (4, 12), (2, 8)):
        assert row_bytes(16, bits) == expected
        assert encode_rows(rows, bits).shape == (5, expected)
        assert fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(rows, bits).shape == (5, expected)
    assert fbgemm.FloatToFused8BitRowwiseQuantized(rows).shape == (5, 24)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_fbgemm_serves_the_stored_bytes(bits: int):
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    stored = pack(rows, bits, search=True)
    kernel = IntNBitTableBatchedEmbeddingBagsCodegen(
        embedding_specs=[("t", 300, 16, SparseType[f"INT{bits}"], EmbeddingLocation.HOST)],
        row_alignment=1,
        output_dtype=SparseType.FP32,
        device="cpu",
    )
    kernel.initialize_weights()
    kernel.assign_embedding_weights([(stored.values[:, :-4], stored.values[:, -4:])])
    assert 0 <= kernel.weights_host.numel() - stored.num_bytes < 128  # a whole table is filled up to its lines
    ids = torch.randint(300, (80,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    served = kernel(ids, torch.arange(81, dtype=torch.int32))
    # One product and one sum of numbers below 4, fused there.
    assert torch.allclose(served, stored(ids.long()), rtol=0, atol=1e-6)


@settings(max_examples=60)
@given(dim=st.integers(1, 19), bits=st.sampled_from([8, 4, 2]), seed=st.integers(0, 2**16), search=st.booleans())
def test_any_width_comes_back_within_one_step(dim: int, bits: int, seed: int, search: bool):
    rows = torch.randn(20, dim, generator=torch.Generator().manual_seed(seed))
    packed = encode_rows(rows, bits, search=search)
    assert packed.shape == (20, row_bytes(dim, bits))
    error = (decode_rows(packed, bits, dim) - rows).square().sum(1).sqrt()
    low, high = torch.aminmax(rows, dim=1)
    # Half a step in every column, and what float16 leaves of scale and bias: 2**-11 of each, times 255 / 255 steps.
    step = (high - low) / (2**bits - 1)
    bound = dim**0.5 * (step / 2 + 2**-10 * (high - low + rows.abs().amax(1)))
    if not search:
        assert bool((error <= bound + 1e-6).all())
    else:
        plain = (decode_rows(encode_rows(rows, bits), bits, dim) - rows).square().sum(1).sqrt()
        assert bool((error <= plain * (1 + 1e-5)).all())


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6])
def test_the_scale_of_a_table_costs_no_precision(bits: int, scale: float):
    rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    errors = [
        float((pack(rows * s, bits).expand().double() / s - rows.double()).square().mean().sqrt()) for s in (1.0, scale)
    ]
    # The same codes up to how float16 rounds scale and bias, which is a matter of chance in each row.
    assert errors[1] <= 1.1 * errors[0]


def test_usual_tables_are_stored_as_they_are():
    assert fitting_exponent(0.3) == 0
    assert fitting_exponent(0) == 0
    rows = torch.randn(10, 16)
    assert torch.equal(pack(rows, 8).values, encode_rows(rows, 8))


def test_constant_rows_are_kept_to_half_precision():
    rows = torch.full((3, 16), 0.3)
    for bits in (8, 4, 2):
        # float16 keeps 11 bits of the constant.
        assert float((pack(rows, bits).expand() - rows).abs().max()) <= 0.3 * 2**-11
