"""Compiles an exported model with AOTInductor, for a bundle that has native code beside its list of operators."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from dlrmctl.errors import UserError
from dlrmctl.serving.compiled import this_machine


def check_compiler() -> None:
    """Checks that a C++ compiler can be called.

    Raises:
        UserError: if not.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        raise UserError(
            "--format aoti needs a C++ compiler, and neither $CXX nor g++ can be called",
            "install g++, or set CXX to a compiler",
        ) from None


def compile_program(program: ExportedProgram, weights: Mapping[str, int], place: Path) -> tuple[bytes, dict[str, Any]]:
    """Compiles a model for this machine, without its weights.

    Args:
        program: the model, which is changed: it returns logits afterwards.
        weights: numbers by the names of the program's weights.
        place: a directory for files.

    Returns:
        The package, and what its reader has to know: versions, processor, and the numbers of the weights.

    Raises:
        UserError: if it cannot be compiled.
    """
    from torch._inductor.utils import fresh_cache

    _end_with_logits(program)
    path = place / "compiled.pt2"
    # Weights stay in the bundle, once.
    options = {"aot_inductor.package_constants_in_so": False}
    try:
        # torch itself warns of a name that it still uses.
        with warnings.catch_warnings(action="ignore", category=FutureWarning), fresh_cache(dir=str(place)):
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
        # As the server loads it; `torch._inductor` has no name for this.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except RuntimeError as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise UserError(f"--format aoti: the model cannot be compiled: {reason:.300}", "omit --format aoti") from None
    named = {name: weights[name] for name in loader.get_constant_fqns()}
    return path.read_bytes(), {"torch": torch.__version__, "machine": this_machine(), "weights": named}


def _end_with_logits(program: ExportedProgram) -> None:
    """Removes the final sigmoid and the checks of the inputs, which a bundle's reader has done."""
    graph: fx.Graph = program.graph
    output = graph.output_node()
    (probabilities,) = output.all_input_nodes
    (logits,) = probabilities.all_input_nodes
    output.args = ((logits,),)
    graph.erase_node(probabilities)
    for node in reversed(list(graph.nodes)):
        if "_assert_async" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_signature.output_specs[0].arg.name = logits.name
    program.graph_module.recompile()
