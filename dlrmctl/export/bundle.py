"""Writes a model and the features of its run as a bundle; see `serving.bundle`."""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.features.space import GENERATED, FeatureSpace
from dlrmctl.data.formats.table_schema import BY_TYPE
from dlrmctl.errors import UserError
from dlrmctl.export.compile import compile_program
from dlrmctl.serving.bundle import ALIGNMENT, FORMAT, MANIFEST, seal
from dlrmctl.serving.program import ATEN, PYTHON, values_in
from dlrmctl.serving.vocabulary import sort_values

_LOCAL_HEADER_BYTES = 30
_PADDING = struct.Struct("<HH")  # an extra field of a zip member: its kind and length
_PADDING_KIND = 0xD935  # as Android's zipalign
_CHECKS = ("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range")


def check_features(features: FeatureSpace) -> None:
    """Checks that raw rows can be scored with these features.

    Raises:
        UserError: if not, with the reason.
    """
    if features.input == GENERATED:
        raise UserError(
            "the run was trained on generated data, which has no raw rows", "-o model.pt2 exports its graph"
        )
    if features.input is None or not features.columns:
        raise UserError("the data of the run was not made from raw rows", "-o model.pt2 exports the graph alone")
    table = features.table_schema
    if (table is None and features.input not in ("criteo", "npy")) or (table is not None and table.values == BY_TYPE):
        raise UserError(
            "the data of the run was prepared by an earlier version",
            "prepare it again and train on that, or -o model.pt2 exports the graph alone",
        )


@dataclass
class _Arrays:
    """Arrays of a bundle, written one after another."""

    archive: zipfile.ZipFile
    entries: list[dict[str, Any]] = field(default_factory=list)

    def add(self, array: np.ndarray) -> int:
        """Writes an array; returns its number."""
        array = np.ascontiguousarray(array)
        content = array.reshape(-1).view(np.uint8)
        number = len(self.entries)
        self.entries.append({"dtype": array.dtype.str, "shape": list(array.shape), "crc32": zlib.crc32(content.data)})
        _write_member(self.archive, f"arrays/{number}", content.data)
        return number


def write_bundle(
    path: Path,
    program: ExportedProgram,
    features: FeatureSpace,
    about: Mapping[str, Any],
    *,
    compiled: bool = False,
) -> None:
    """Writes a bundle.

    Args:
        path: of the new file.
        program: the exported model, whose output is probabilities; changed if it is compiled.
        features: of the run.
        about: plain values for JSON.
        compiled: whether to add native code for this machine.

    Raises:
        DataError: if a file of the features is missing or was changed.
        OSError: if the file cannot be written.
    """
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            arrays = _Arrays(archive)
            columns = _columns(features, arrays)
            steps, weights = _program(program, arrays)
            code = None
            if compiled:
                package, code = compile_program(program, weights, path.parent)
                code["array"] = arrays.add(np.frombuffer(package, np.uint8))
            content = {
                "format": FORMAT,
                "torch": torch.__version__,
                "about": dict(about),
                "input": features.input,
                "schema": features.schema.to_dict(),
                "table_schema": features.table_schema.to_dict() if features.table_schema else None,
                "columns": columns,
                "program": steps,
                "compiled": code,
                "arrays": arrays.entries,
            }
            _write_member(archive, MANIFEST, memoryview(seal(json.loads(json.dumps(content)))))
        file.flush()
        os.fsync(file.fileno())


def _write_member(archive: zipfile.ZipFile, name: str, content: memoryview) -> None:
    info = zipfile.ZipInfo(name)  # of 1980: the same model makes the same bytes
    assert archive.fp is not None
    start = archive.fp.tell() + _LOCAL_HEADER_BYTES + len(name.encode())
    zip64 = 20 if content.nbytes * 1.05 > zipfile.ZIP64_LIMIT else 0  # zipfile adds a field of this length then
    info.extra = _padding(start + zip64)
    info.file_size = content.nbytes
    with archive.open(info, "w", force_zip64=bool(zip64)) as member:
        for at in range(0, content.nbytes, 1 << 24):
            member.write(content[at : at + (1 << 24)])


def _padding(start: int) -> bytes:
    """Returns an extra field after which the content of a member begins at a multiple of `ALIGNMENT`."""
    length = -(start + _PADDING.size) % ALIGNMENT
    return _PADDING.pack(_PADDING_KIND, length) + bytes(length)


def _columns(features: FeatureSpace, arrays: _Arrays) -> list[dict[str, Any]]:
    """Returns how the values of each sparse feature get rows; features that share a vocabulary share its arrays."""
    written: dict[KeptArray, tuple[list[int], str]] = {}
    found = []
    for column in features.columns:
        plain = column.to_dict()
        for key in ("counts", "rare", "texts", "unseen", "reused"):  # a server needs none of them
            plain.pop(key, None)
        entry: dict[str, Any] = {"column": plain, "word_type": "<u8"}
        encoder = column.encoder
        if isinstance(encoder, KeptArray):
            if encoder not in written:
                assert features.directory is not None
                values = encoder.load(features.directory)
                written[encoder] = [arrays.add(part) for part in sort_values(values)], values.dtype.str
            entry["vocabulary"], entry["word_type"] = written[encoder]
        found.append(entry)
    return found


def _program(program: ExportedProgram, arrays: _Arrays) -> tuple[dict[str, Any], dict[str, int]]:
    """Writes the weights of a graph.

    Returns:
        The graph as steps, without the checks of its inputs and without the final sigmoid; and the numbers of its
        weights by name.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    (result,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert result.target is torch.ops.aten.sigmoid.default, "the model ends with the sigmoid"
    result = result.args[0]
    tensors, inputs = _placeholders(program)
    used = _needed(nodes, result)
    weights = [(name, node, tensor) for name, node, tensor in tensors if node in used]
    numbers: dict[fx.Node, int] = {node: place for place, (_, node, _) in enumerate(weights)}
    for node in inputs:
        numbers[node] = len(numbers)
    steps = []
    for node in nodes:
        if node in used:
            keywords = {key: _argument(value, numbers) for key, value in node.kwargs.items()}
            steps.append(
                {"op": _name(node), "args": [_argument(one, numbers) for one in node.args], "kwargs": keywords}
            )
            numbers[node] = len(numbers)
    for step in steps:
        assert all(type(value) is int for value in values_in(step["args"]))
    assert program.example_inputs is not None
    arguments, _ = program.example_inputs
    lists, weighted = (list(arguments[place]) if len(arguments) > place else [] for place in (2, 3))
    assert len(inputs) == 2 + len(lists) + len(weighted)
    places = {name: arrays.add(tensor.detach().contiguous().numpy()) for name, _, tensor in weights}
    return {
        "tensors": list(places.values()),
        "lists": lists,
        "weights": weighted,
        "steps": steps,
        "output": numbers[result],
    }, places


def _placeholders(program: ExportedProgram) -> tuple[list[tuple[str, fx.Node, Tensor]], list[fx.Node]]:
    """Returns the names, nodes and tensors of weights and constants, and the nodes of the inputs, in order."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    known: dict[str, Any] = {**program.state_dict, **program.constants}
    tensors, inputs = [], []
    for spec in program.graph_signature.input_specs:
        node = nodes[spec.arg.name]
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(node)
        else:
            assert spec.target is not None
            tensors.append((spec.target, node, known[spec.target]))
    return tensors, inputs


def _needed(nodes: Sequence[fx.Node], result: fx.Node) -> set[fx.Node]:
    """Returns the nodes that a result depends on. What changes a tensor in place is one of them."""
    needed = {result}
    for node in reversed(nodes):
        if any(check in str(node.target) for check in _CHECKS):
            continue
        schema = getattr(node.target, "_schema", None)
        if node in needed or (schema is not None and schema.is_mutable):
            needed.add(node)
            needed.update(node.all_input_nodes)
    return needed


def _name(node: fx.Node) -> str:
    name = str(node.target)
    if name.startswith(ATEN):
        return name
    name = getattr(node.target, "__name__", name)
    if name not in PYTHON:
        raise UserError(f"the graph calls {name}, which a bundle does not have", "-o model.pt2 exports the graph alone")
    return name


def _argument(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"is": numbers[value]}
    if isinstance(value, list | tuple):
        return [_argument(one, numbers) for one in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device):
        return str(value)
    raise UserError(f"the graph has an argument {value!r}, which a bundle does not have", "-o model.pt2 exports it")
