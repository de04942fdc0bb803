"""Scores raw rows with a bundle, with torch and NumPy alone.

B rows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlrmctl.data.errors import DataError
from dlrmctl.data.features.columns import ColumnEntry
from dlrmctl.data.features.encoders import Encoder
from dlrmctl.data.features.kept_array import KeptArray
from dlrmctl.data.formats.table_schema import SparseColumn, TableSchema
from dlrmctl.data.schema import Schema
from dlrmctl.data.sealed import Values
from dlrmctl.serving.bundle import Bundle, open_bundle
from dlrmctl.serving.compiled import CompiledProgram
from dlrmctl.serving.errors import BundleError
from dlrmctl.serving.program import Program
from dlrmctl.serving.rows import ModelInputs, Row, RowReader, array_reader, criteo_reader, table_reader
from dlrmctl.serving.vocabulary import SortedVocabulary


class Scorer:
    """A model that scores raw rows, as they were given to `dlrmctl prepare`. Any number of threads may use it.

    Args:
        path: a bundle that `dlrmctl export RUN -o model.dlrm` wrote.
        verify: whether to take the checksums of tables and vocabularies, at 2 to 4 GB/s.
        compiled: run the native code of the bundle, which `--format aoti` adds. It can do all that this process may:
            ask for it only where you trust whoever made the file.

    Attributes:
        about: run, checkpoint, precision, calibration and results of the check, as the bundle has them.

    Raises:
        BundleError: if it cannot be read, or is something else, damaged, or of another version; or has no compiled
            code for this machine.
    """

    def __init__(self, path: Path | str, *, verify: bool = True, compiled: bool = False) -> None:
        bundle = open_bundle(path, verify=verify)
        self.path, self.mapped = bundle.path, bundle.mapped
        try:
            self.about: Mapping[str, Any] = bundle.content["about"]
            self._schema = Schema.from_dict(bundle.content["schema"])
            self._table = _table_schema(bundle)
            self._encoders = _encoders(bundle)
            self._reader = _reader(bundle, self._schema, self._table, self._encoders)
            program = bundle.content["program"]
            tensors = [torch.from_numpy(bundle.arrays[number]) for number in program["tensors"]]
            self._lists, self._weights = tuple(program["lists"]), tuple(program.get("weights", ()))
            num_inputs = 2 + len(self._lists) + len(self._weights)
            self._program: Program | CompiledProgram
            if compiled:
                self._program = _compiled(bundle)
            else:
                self._program = Program(tensors, num_inputs, program["steps"], program["output"])
            self.input_format: str = bundle.content["input"]
        except (KeyError, TypeError, IndexError, DataError) as problem:
            raise BundleError(f"{path}: damaged, or of another version: {problem!r:.200}; export it again") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row must have; null is a missing value, and other columns are ignored."""
        return self._reader.columns

    def score(self, rows: Sequence[Row]) -> np.ndarray:
        """Returns the probability of label 1 of each row, float32 [B].

        Args:
            rows: mappings from columns to raw values; see `columns`.

        Raises:
            RowError: naming the row, the column and the value that is wrong.
        """
        return self.probabilities(self.logits(rows))

    def logits(self, rows: Sequence[Row]) -> np.ndarray:
        """Returns the logit of each row, float32 [B].

        Raises:
            RowError: as `score`.
        """
        return self.run(self.read(rows)) if len(rows) else np.empty(0, np.float32)

    @staticmethod
    def probabilities(logits_B: np.ndarray) -> np.ndarray:
        """Returns the probabilities of logits."""
        return torch.from_numpy(logits_B).sigmoid().numpy()

    def read(self, rows: Sequence[Row]) -> ModelInputs:
        """Returns the inputs of the model for at least one row.

        Raises:
            RowError: as `score`.
        """
        return self._reader.read(rows)

    def run(self, inputs: ModelInputs) -> np.ndarray:
        """Returns the logits of inputs, float32 [B]."""
        lists = [inputs.lists[name] for name in self._lists] + [inputs.weights[name] for name in self._weights]
        arrays = (inputs.dense_BI, inputs.ids_BF, *lists)
        with torch.inference_mode():
            return self._program(*map(torch.from_numpy, arrays)).numpy()

    def describe(self) -> dict[str, Any]:
        """Returns the columns of a row and what the model is, as plain values for JSON."""
        return {"columns": self._described(), "label": self._schema.label, "model": dict(self.about)}

    def _described(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if self._table is None:
            kinds = {"criteo": ("integer", "hexadecimal string"), "npy": ("number", "id")}[self.input_format]
            for name in self._schema.dense:
                found[name] = {"name": name, "values": kinds[0]}
            for feature in self._schema.sparse:
                what = f"list of at most {feature.max_ids} ids" if feature.max_ids > 1 else kinds[1]
                found[feature.name] = {"name": feature.name, "values": what}
            return list(found.values())
        for dense in self._table.dense:
            for source in dense.sources:
                found.setdefault(source, {"name": source, "values": "time" if dense.since else "number"})
        for sparse in self._table.sparse:
            if sparse.cross is None:
                what = "time" if sparse.part else "number" if sparse.buckets else sparse.type or "string or number"
                what = _of_lists(sparse) if sparse.max_ids > 1 else what
                found.setdefault(sparse.source, {"name": sparse.source, "values": what})
            if sparse.weights is not None:
                what = f"list of numbers, one for each value of {sparse.source}"
                found.setdefault(sparse.weights, {"name": sparse.weights, "values": what})
        return [found[name] for name in self.columns]


def _of_lists(column: SparseColumn) -> str:
    if column.truncate == "reject":
        return f"list of at most {column.max_ids} values"
    return f"list of values, of which the {column.truncate} {column.max_ids} count"


def _compiled(bundle: Bundle) -> CompiledProgram:
    about = bundle.content.get("compiled")
    if about is None:
        raise BundleError(f"{bundle.path}: it has no compiled code; `dlrmctl export RUN --format aoti` adds it")
    try:
        return CompiledProgram(bundle.arrays[about["array"]], about, bundle.arrays)
    except BundleError as problem:
        raise BundleError(f"{bundle.path}: {problem}") from None


def _table_schema(bundle: Bundle) -> TableSchema | None:
    values = bundle.content["table_schema"]
    return None if values is None else TableSchema.from_dict(values, str(bundle.path))


def _encoders(bundle: Bundle) -> dict[str, Encoder]:
    encoders: dict[str, Encoder] = {}
    for entry in bundle.content["columns"]:
        column = ColumnEntry.from_values(Values(entry["column"]))
        if isinstance(column.encoder, KeptArray):
            values, rows = (bundle.arrays[number] for number in entry["vocabulary"])
            encoders[column.name] = SortedVocabulary(values, rows)
        else:
            encoders[column.name] = column.encoder
    return encoders


def _reader(bundle: Bundle, schema: Schema, table: TableSchema | None, encoders: Mapping[str, Encoder]) -> RowReader:
    if table is not None:
        return table_reader(schema, table, encoders)
    if bundle.content["input"] == "criteo":
        return criteo_reader(schema, encoders)
    types = {entry["column"]["name"]: np.dtype(entry["word_type"]) for entry in bundle.content["columns"]}
    return array_reader(schema, encoders, types)
