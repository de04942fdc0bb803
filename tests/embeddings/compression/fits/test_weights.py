import pytest
import torch

from dlrmctl.embeddings.compression.fits.trained import importance


def test_weights_have_mean_one_and_keep_proportions():
    counts = torch.tensor([1.0, 3.0, 8.0])
    found = importance("counts", 3, counts)
    assert float(found.weights.mean()) == pytest.approx(1)
    assert torch.allclose(found.weights * found.scale, counts)


def test_rows_never_looked_up_keep_a_tenth():
    found = importance("counts", 3, torch.tensor([0, 4, 2]))
    assert float(found.weights[0] * found.scale) == pytest.approx(0.1)
    sums = importance("adagrad", 4, torch.tensor([0, 1e-6, 2e-6, 5e-6]))
    assert float(sums.weights[0] * sums.scale) == pytest.approx(2e-7)
    assert bool((sums.weights > 0).all())


def test_no_look_ups_at_all_leave_rows_equal():
    assert torch.equal(importance("adagrad", 3, torch.zeros(3)).weights, torch.ones(3))
    assert torch.equal(importance("uniform", 2).weights, torch.ones(2))


def test_what_cannot_be_weights_is_told():
    with pytest.raises(ValueError, match="table t: adagrad of row 1 is nan"):
        importance("adagrad", 2, torch.tensor([1.0, float("nan")]), name="t")
    with pytest.raises(ValueError, match=r"counts of row 0 is -1\.0"):
        importance("counts", 2, torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match=r"must have shape \(3,\), found shape \(2,\)"):
        importance("counts", 3, torch.ones(2))
    with pytest.raises(ValueError, match="found none"):
        importance("adagrad", 3)
    with pytest.raises(ValueError, match="must be one of adagrad, counts, uniform"):
        importance("guess", 3)
