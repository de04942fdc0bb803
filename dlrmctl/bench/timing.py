"""Measures works: time without warm-up, variants alternated, the device waited for; memory, collectives and waits.

Memory, collectives and waits are read from a trace. Tracing slows a step down, so it is separate from the timing.
"""

import math
import os
import re
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

_GLOO = "gloo:"
_NCCL_KERNEL = re.compile(r"nccl\w*?Kernel_([A-Za-z]+)")
_WARMUP_ROUNDS = 1
# Calls of CUDA's runtime in which the host waits; copies to memory that is not pinned wait as well.
_SYNCHRONIZATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_BLOCKING_COPY = re.compile(r"Memcpy DtoH \(Device -> Pageable\)")
_TRACED, _READ, _ON_HOST = "traced steps", "host read: ", "read of a tensor of the host"
# Methods that give the host a tensor's values, and operators that do so inside.
_READS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "nonzero", "unique", "equal"}
_READING_OPERATORS = {"aten::_local_scalar_dense", "aten::nonzero"}
# Kernels for CPU alone, which read counters and learning rates.
_CPU_KERNELS = re.compile(r"aten::_fused_|autograd::.*<SplitLookupFunction_")


def now(device: torch.device) -> float:
    """Returns the seconds on a clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(works: Mapping[str, Callable[[], None]], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of each work in each round; works alternate, so that all see the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(_WARMUP_ROUNDS + rounds):
        for name, work in works.items():
            started = now(device)
            work()
            if round_number >= _WARMUP_ROUNDS:
                seconds[name].append(now(device) - started)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and range of times, or of ratios of times."""
    return {"median": statistics.median(values), "fastest": min(values), "slowest": max(values)}


def spread_of_rates(values: list[float]) -> dict[str, float]:
    """Returns the median and range of rates, of which the largest is the fastest."""
    return {"median": statistics.median(values), "fastest": max(values), "slowest": min(values)}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and its standard error; NaN with fewer than two values."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


class Laps:
    """Times the named parts of a step; on CUDA by events in the stream, so that the host does not wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str | None, Any]] = []

    def start(self) -> None:
        self._mark(None)

    def end(self, part: str) -> None:
        self._mark(part)

    def _mark(self, part: str | None) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def take(self, steps: int) -> dict[str, float]:
        """Returns milliseconds per step by part since the last call, the mean over all steps."""
        now(self.device)
        total: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                elapsed = before.elapsed_time(after) if self.device.type == "cuda" else (after - before) * 1e3
                total[part] += elapsed
        self._marks.clear()
        return {part: milliseconds / steps for part, milliseconds in total.items()}


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Returns the peak bytes that torch held for `work`, above what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _hushed(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    changes = [(e.start_ns(), e.nbytes()) for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for _, count in sorted(changes, key=lambda change: change[0]):
        held += count
        most = max(most, held)
    return most


def collective_milliseconds(work: Callable[[], None], steps: int) -> dict[str, float]:
    """Returns milliseconds per step that collectives are in progress, by kind; backward continues meanwhile.

    Args:
        work: takes `steps` steps.
    """
    with _hushed(), profile(activities=_activities()) as trace:
        work()
    total: dict[str, float] = defaultdict(float)
    for event in trace.events():
        kind = collective_kind(event.name, on_gpu=event.device_type == DeviceType.CUDA)
        if kind is not None:
            total[kind] += event.time_range.elapsed_us() / 1e3 / steps
    return dict(total)


def collective_kind(event: str, *, on_gpu: bool) -> str | None:
    """Returns the kind of collective that an event of a trace is, or None.

    NCCL's work is its kernels; the events of the same collectives on the host only start them.
    """
    if on_gpu:
        kernel = _NCCL_KERNEL.match(event)
        return None if kernel is None else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kernel[1]).lower()
    return event.removeprefix(_GLOO).replace("_", " ") if event.startswith(_GLOO) else None


@dataclass(frozen=True)
class Waits:
    """How often the host stopped in a trace, by name: in CUDA's runtime, and where values of tensors were read."""

    synchronizations: Mapping[str, int]
    host_reads: Mapping[str, int]


def traced_waits(
    work: Callable[[], None],
    device: torch.device,
    *,
    on_host: Collection[Tensor] = (),
    cpu_only: Collection[Any] = (),
    file: Path | None = None,
) -> Waits:
    """Counts the synchronizations of a work, and the places where it reads values of tensors.

    On CPU there are only the latter: a read of a tensor waits for the device on CUDA, and costs nothing here.

    Args:
        work: only what runs in this thread is seen.
        on_host: tensors that are not on the device even on CUDA, such as counters of steps.
        cpu_only: functions that read nothing on CUDA.
        file: to write the trace to, in Chrome's format.
    """
    with _hushed():
        marks = _ReadMarks(device, on_host, cpu_only)
        with profile(activities=_activities()) as trace, record_function(_TRACED), marks:
            work()
        if file is not None:
            trace.export_chrome_trace(str(file))
    events = trace.events()
    (whole,) = [event for event in events if event.name == _TRACED and event.device_type == DeviceType.CPU]
    synchronizations, reads = Counter[str](), Counter[str]()
    for event in events:
        if event.name in _SYNCHRONIZATIONS or _BLOCKING_COPY.match(event.name):
            # The profiler itself waits at its end.
            synchronizations[event.name] += whole.time_range.start <= event.time_range.start <= whole.time_range.end
        elif event.name.startswith(_READ) and event.device_type == DeviceType.CPU:
            reads[event.name.removeprefix(_READ)] += 1
        elif event.name in _READING_OPERATORS:
            callers = _callers(event)
            outermost = [event.name, *(name for name in callers if "::" in name)][-1]
            marked = any(caller.startswith((_READ, _ON_HOST)) for caller in callers)
            reads[outermost] += not marked and not _CPU_KERNELS.match(outermost)
    return Waits(dict(+synchronizations), dict(+reads))  # without those that are 0


def _callers(event: Any) -> list[str]:
    """Returns the names of the events that an event is in, from the inside to the outside."""
    names = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        names.append(event.name)
    return names


class _ReadMarks(TorchFunctionMode):
    """Marks in a trace where Python code reads values of tensors of the device, by the name of the line."""

    def __init__(self, device: torch.device, on_host: Collection[Tensor], cpu_only: Collection[Any]) -> None:
        super().__init__()
        self._device, self._cpu_only = device.type, {function.__code__ for function in cpu_only}
        self._on_host = {tensor.untyped_storage().data_ptr() for tensor in on_host}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not _reads(name, args, kwargs):
            return func(*args, **kwargs)
        read = next((arg for arg in args if isinstance(arg, Tensor)), None)
        frame = _caller()
        on_host = frame.f_code in self._cpu_only
        if read is not None:
            on_host |= read.device.type != self._device or read.untyped_storage().data_ptr() in self._on_host
        line = f"{frame.f_globals['__name__']}:{frame.f_lineno}"
        with record_function(_ON_HOST if on_host else f"{_READ}{name.strip('_')}, {line}"):
            return func(*args, **kwargs)


def _reads(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a call needs values of a tensor on the host, or gives the device a list of the host."""
    if name == "__getitem__":
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
    if name == "repeat_interleave":
        return isinstance(args[-1], Tensor) and len(args) > 1 and kwargs.get("output_size") is None
    if name == "segment_reduce":
        return not kwargs.get("unsafe")
    if name in ("tensor", "as_tensor"):
        return kwargs.get("device") is not None and not isinstance(args[0], Tensor)
    return name in _READS


def _caller() -> Any:
    """Returns the frame that called torch."""
    frame: Any = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "torch":
        frame = frame.f_back
    return frame


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_initialized() else [])]


@contextmanager
def _hushed() -> Iterator[None]:
    """Hides the log of the profiler's C++ code from standard error."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
