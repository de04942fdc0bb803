"""The compiled code of a bundle, which AOTInductor made when it was exported.

It is native code: it can do all that the process may do, and no check of it is possible. It is loaded only on request;
the bundle's list of operators gives the same scores.
"""

import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrmctl.serving.errors import BundleError

# Instructions that a compiler uses; other flags of a processor do not matter to code.
_INSTRUCTIONS = (
    *("sse", "ssse", "avx", "amx", "fma", "bmi", "f16c", "gfni", "vaes", "vpclmul", "movbe", "popcnt", "abm", "adx"),
    *("asimd", "sve", "i8mm", "bf16", "fphp", "atomics"),
)
_PLAIN = "score with its operators, without compiled code, or export it here"


def this_machine() -> dict[str, Any]:
    """Returns what compiled code depends on: the system, the processor, and its instructions."""
    flags: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass  # no Linux: the system and the processor alone
    instructions = sorted(flag for flag in flags if flag.startswith(_INSTRUCTIONS))
    return {"system": platform.system(), "processor": platform.machine(), "instructions": instructions}


class CompiledProgram:
    """A function of tensors, in native code. Any number of threads may call it.

    Args:
        package: of AOTInductor, uint8.
        about: "torch", "machine", and "weights": numbers by name.
        arrays: by these numbers; they must not change.

    Raises:
        BundleError: if it was compiled for another machine or version of torch, or cannot be loaded.
    """

    def __init__(self, package: np.ndarray, about: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> None:
        if about["torch"] != torch.__version__:
            raise BundleError(f"its code was compiled for torch {about['torch']}, not {torch.__version__}; {_PLAIN}")
        made, here = about["machine"], this_machine()
        if (made["system"], made["processor"]) != (here["system"], here["processor"]):
            raise BundleError(f"its code was compiled for {made['system']} on {made['processor']}; {_PLAIN}")
        lacking = sorted(set(made["instructions"]) - set(here["instructions"]))
        if lacking and here["instructions"]:
            raise BundleError(f"its code was compiled for a processor with {', '.join(lacking)}; {_PLAIN}")
        self._weights = {name: torch.from_numpy(arrays[number]) for name, number in about["weights"].items()}
        with tempfile.TemporaryDirectory(prefix="dlrmctl-") as directory:  # which nobody else may write into
            path = Path(directory, "compiled.pt2")
            path.write_bytes(package.data)
            try:
                # torch._inductor.aoti_load_package without the compiler, whose import takes a second.
                self._loader = torch._C._aoti.AOTIModelPackageLoader(
                    str(path), "model", False, max(1, torch.get_num_threads()), -1
                )
                self._loader.load_constants(self._weights, False, True, True, False)  # all of them, not copied
            except RuntimeError as problem:
                reason = (str(problem).strip().splitlines() or ["no reason"])[0]
                raise BundleError(f"its code cannot be loaded: {reason:.200}; {_PLAIN}") from None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns the output."""
        output: Tensor = self._loader.run(list(inputs))[0]
        return output
