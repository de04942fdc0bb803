"""Plans settings, tables and ranks: what fits, what would fit, and the time of a step."""

from dataclasses import asdict, dataclass
from typing import Any

from dlrmctl.assembly.tables import summary
from dlrmctl.data.schema import Schema
from dlrmctl.plan.cluster import Cluster
from dlrmctl.plan.memory import MemoryPlan, plan_memory
from dlrmctl.plan.remedies import Remedy, remedies
from dlrmctl.plan.steptime import Rates, StepTime, estimate, find_rates
from dlrmctl.settings.config import Config


@dataclass(frozen=True)
class Answer:
    """The plan with its estimates and remedies."""

    config: Config
    source: str
    memory: MemoryPlan
    remedies: list[Remedy]
    rates: Rates
    time: StepTime

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON; bytes and seconds."""
        plan, cluster = self.memory, self.memory.cluster
        return {
            "fits": plan.fits,
            "problem": plan.problem,
            "tables_of": self.source,
            "summary": summary(plan.embeddings.features, self.config.embeddings),
            "ranks": asdict(cluster) | {"nodes": cluster.nodes},
            "tables": [asdict(table) for table in plan.placements],
            "memory": {
                "per_rank": plan.totals,
                "available_per_rank": cluster.memory_bytes,
                "parts_per_rank": plan.parts,
                "host_tables_per_rank": plan.host_tables,
                "checkpoint_copy_per_rank": plan.copy,
                "dense_weights": plan.dense.num_weights,
                "optimizer_state_per_rank": plan.dense.state,
                "optimizer_scratch_per_rank": plan.dense.scratch,
            },
            "remedies": [asdict(remedy) for remedy in self.remedies],
            "step": {
                "estimate_seconds": self.time.total,
                "bound_by": self.time.bound_by,
                "parts_seconds": self.time.parts,
                "optimizer_share_of_rest": self.time.optimizer_shares,
                "rates": asdict(self.rates),
            },
            "settings": self.config.to_dict(),
        }


def answer(
    config: Config,
    schema: Schema,
    cluster: Cluster,
    *,
    source: str,
    flops: float | None = None,
    memory_bandwidth: float | None = None,
) -> Answer:
    """Plans the memory, estimates the time of a step, and finds what would fit; of batches that grow, the largest."""
    config = config.at_largest_batch()
    plan = plan_memory(config, schema, cluster)
    rates = find_rates(
        cluster,
        plan.dense,
        dim=config.embeddings.dim,
        batch=config.train.batch_size // cluster.world_size,
        precision=config.train.precision,
        flops=flops,
        memory=memory_bandwidth,
    )
    return Answer(config, source, plan, remedies(config, schema, plan), rates, estimate(config, plan, rates))
