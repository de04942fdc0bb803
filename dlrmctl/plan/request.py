"""The ranks to plan for, read from flags and checked without loading torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from dlrmctl.errors import UserError
from dlrmctl.settings.amounts import bandwidth_of, size_of
from dlrmctl.settings.parse import whole_number

if TYPE_CHECKING:
    from dlrmctl.plan.cluster import Cluster

_MOST_RANKS = 4096


@dataclass(frozen=True)
class ClusterRequest:
    """The ranks of this machine, or of a cluster described by numbers.

    Attributes:
        device: "auto", "cpu" or "cuda"; "cpu" or "cuda" for a described cluster.
        memory_bytes: memory of each rank of a described cluster; None for this machine.
        intra_bandwidth, inter_bandwidth: as `Cluster` has them.
    """

    device: str
    world_size: int
    nodes: int = 1
    memory_bytes: int | None = None
    intra_bandwidth: float | None = None
    inter_bandwidth: float | None = None

    @classmethod
    def read(
        cls,
        device: str,
        *,
        nproc: str | None,
        world_size: str | None,
        nodes: str | None,
        hbm: str | None,
        ram: str | None,
        intra_bw: str | None,
        inter_bw: str | None,
    ) -> Self:
        """Reads the flags of the same names; None for those that were not given.

        Args:
            device: device of the settings, for this machine.

        Raises:
            UserError: if one cannot be parsed, or two contradict each other.
        """
        intra = None if intra_bw is None else bandwidth_of("--intra-bw", intra_bw)
        inter = None if inter_bw is None else bandwidth_of("--inter-bw", inter_bw)
        numbers = {"--world-size": world_size, "--nodes": nodes, "--hbm": hbm, "--ram": ram}
        typed = [flag for flag, text in numbers.items() if text is not None]
        if nproc is not None and typed:
            raise UserError(f"--nproc is for this machine and {typed[0]} for a cluster", f"omit --nproc or {typed[0]}")
        if not typed and inter is not None:
            raise UserError(
                "--inter-bw is for ranks on several nodes, and this machine is one",
                "omit it, or describe the nodes: --nodes 2 --world-size 16 --hbm 80GiB",
            )
        if not typed:
            return cls(device, _number_of_ranks("--nproc", nproc or "1"), intra_bandwidth=intra)
        if hbm is not None and ram is not None:
            raise UserError("--hbm is for GPUs and --ram for ranks on CPUs", "omit one of them")
        if hbm is None and ram is None:
            hint = "--hbm 80GiB, or --ram 512GiB for ranks on CPUs"
            raise UserError(f"{typed[0]} needs the memory of the ranks", hint)
        num_nodes = whole_number("--nodes", nodes or "1", at_least=1)
        size = _number_of_ranks("--world-size", world_size or str(num_nodes))
        if size % num_nodes:
            more = size + -size % num_nodes
            raise UserError(
                f"--world-size = {size} ranks do not spread evenly over --nodes = {num_nodes}", f"--world-size {more}"
            )
        if hbm is not None:
            return cls("cuda", size, num_nodes, size_of("--hbm", hbm), intra, inter)
        return cls("cpu", size, num_nodes, size_of("--ram", ram or "") // (size // num_nodes), intra, inter)

    def cluster(self) -> "Cluster":
        """Returns the ranks with their memory; imports torch.

        Raises:
            UserError: if this machine has no such device.
        """
        from dlrmctl.plan.cluster import described, this_machine

        if self.memory_bytes is None:
            return this_machine(self.device, self.world_size, intra_bandwidth=self.intra_bandwidth)
        return described(
            self.world_size,
            self.nodes,
            self.device,
            self.memory_bytes,
            intra_bandwidth=self.intra_bandwidth,
            inter_bandwidth=self.inter_bandwidth,
        )


def _number_of_ranks(flag: str, text: str) -> int:
    number = whole_number(flag, text, at_least=1)
    if number > _MOST_RANKS:
        raise UserError(f"{flag} = {number} must be at most {_MOST_RANKS}: planning for more takes too long")
    return number
