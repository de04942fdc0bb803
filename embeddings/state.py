"""The tables and their optimizer state as tensors that torch.distributed.checkpoint saves and fills in place."""

from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel


def sparse_state(dmp: DistributedModelParallel) -> dict[str, ShardedTensor]:
    """Live tensors of all tables, by names that do not depend on ranks, plan, or where the tables are in the model.

    Returns:
        For each table "cat_3/weight", [rows, D], and "cat_3/sum", [rows], the row-wise AdaGrad state: of the tables
        this rank has a part of. Saved from any number of ranks they load on any other. Loading into them changes the
        model; nothing has to be called afterwards.
    """
    tensors = {}
    for name, value in dmp.state_dict().items():
        if isinstance(value, ShardedTensor):
            tensors[f"{name.split('.')[-2]}/weight"] = value
    # Names end in <table>.weight.<table>.momentum1.
    for states in dmp.fused_optimizer.state_dict()["state"].values():
        for name, value in states.items():
            table, kind = name.rsplit(".", 1)
            if kind == "momentum1":
                tensors[f"{table}/sum"] = value
    return tensors
