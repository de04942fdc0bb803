import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks


def _sum_of_ranks(start: int) -> float:
    x = torch.tensor(float(dist.get_rank() + start))
    dist.all_reduce(x)
    return x.item()


def _fail_on_rank_one() -> None:
    if dist.get_rank() == 1:
        raise RuntimeError("as intended")


def test_ranks_are_one_process_group():
    assert run_ranks(_sum_of_ranks, 2, 10) == [21.0, 21.0]


def test_a_failing_rank_is_named_and_the_pool_recovers():
    with pytest.raises(AssertionError, match=r"rank 1: .*\n(.*\n)*RuntimeError: as intended"):
        run_ranks(_fail_on_rank_one, 2)
    assert run_ranks(_sum_of_ranks, 2, 0) == [1.0, 1.0]
