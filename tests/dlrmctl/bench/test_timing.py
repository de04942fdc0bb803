import json
from pathlib import Path

import pytest
import torch

from dlrmctl.bench.timing import collective_kind, traced_waits


@pytest.mark.parametrize(
    ("event", "on_gpu", "kind"),
    [
        ("gloo:all_reduce", False, "all reduce"),
        ("nccl:all_reduce", False, None),  # the host only starts it
        ("nccl:all_reduce", True, None),  # an annotation around the kernel
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", True, "all reduce"),
        ("ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclWorkElem)", True, "send recv"),
        ("void at::native::vectorized_elementwise_kernel", True, None),
    ],
)
def test_collectives_of_a_trace_are_gloos_work_and_nccls_kernels(event: str, on_gpu: bool, kind: str | None):
    assert collective_kind(event, on_gpu=on_gpu) == kind


def _of_cpu_alone(tensor: torch.Tensor) -> bool:
    return bool(tensor.isnan().any())


def test_every_read_of_values_is_counted_where_it_is_made_and_no_other(tmp_path: Path):
    values, counter, lengths = torch.arange(4.0), torch.zeros((), dtype=torch.int64), torch.tensor([1, 3])

    def work() -> None:
        for _ in range(2):
            values.tolist(), float(values[1])
            values[values > 1]
            int(counter), _of_cpu_alone(values)  # on the host in any case
            values.masked_select(values > 1)  # reads inside
            values[:2].repeat_interleave(lengths)
            values[:2].repeat_interleave(lengths, output_size=4), torch.where(values > 1, values, 0)  # read nothing
        if values.sum() > 0:
            torch.tensor([1, 2], device="cpu")

    file = tmp_path / "trace.json"
    waits = traced_waits(work, torch.device("cpu"), on_host=[counter], cpu_only=[_of_cpu_alone], file=file)
    assert waits.synchronizations == {}  # CPUs have none
    counts: dict[str, int] = {}
    for name, count in waits.host_reads.items():
        assert f", {__name__}:" in name or "::" in name
        counts[name.partition(",")[0]] = count
    twice = ("tolist", "float", "getitem", "repeat_interleave", "aten::masked_select")
    assert counts == {**dict.fromkeys(twice, 2), "bool": 1, "tensor": 1}
    names = [event.get("name") for event in json.loads(file.read_text())["traceEvents"]]
    assert sum("host read: tolist" in str(name) for name in names) == 2
