import pytest

from dlrmctl.bench.timing import collective_kind


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
