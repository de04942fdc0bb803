"""The calibration of a checkpoint: a map of logits, fitted afterwards and kept in the run directory.

RUN/calibration.json    slope and bias, and which checkpoint they were fitted to

The map applies to the logits of the model itself, before the offset that corrects for sampled negatives.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dlrmctl.data.errors import DataError
from dlrmctl.data.files import read_file, write_whole
from dlrmctl.data.sealed import Values
from dlrmctl.errors import UserError
from dlrmctl.rundir.directory import RunDirectory
from dlrmctl.rundir.records import MOST_BYTES, read_record

_FORMAT = "dlrmctl-calibration/1"
_FILE = "calibration.json"
_LISTS = ("complete.json", "manifest.json")  # a checkpoint's files with their checksums; those of a compressed model


@dataclass(frozen=True)
class Calibration:
    """A calibrated logit is `slope * logit + bias`.

    Attributes:
        method: "platt" fits slope and bias, "bias" only the bias.
        checkpoint: name of the checkpoint whose logits it was fitted to.
        weights: identity of that checkpoint, see `identity_of`.
    """

    method: str
    slope: float
    bias: float
    checkpoint: str
    weights: str

    @classmethod
    def from_values(cls, values: Values) -> "Calibration":
        """Parses the content of the file.

        Raises:
            DataError: if a value is missing or invalid.
        """
        values.require("format", _FORMAT)
        slope, bias = values.numbers("map")  # finite
        if slope <= 0:
            raise DataError(f"map[0] = {slope} must be above 0")
        return cls(values.text("method"), slope, bias, values.text("checkpoint"), values.text("weights"))

    def save(self, run: RunDirectory) -> Path:
        """Writes the file of the run and returns its path; replaces an earlier calibration.

        Raises:
            DataError: if it cannot be written.
        """
        described = asdict(self)
        content = {"format": _FORMAT, "map": [described.pop("slope"), described.pop("bias")], **described}
        path = run.path / _FILE
        write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
        return path


def read_calibration(run: RunDirectory, checkpoint: Path) -> Calibration:
    """Reads the calibration of a checkpoint.

    Args:
        run: a run, or a compressed model.
        checkpoint: its directory; for a compressed model, that of the model.

    Raises:
        UserError, DataError: if there is none, it belongs to other weights, or it is damaged.
    """
    path = run.path / _FILE
    other = checkpoint != run.path and (run.path / "checkpoints" / "best").resolve() != checkpoint.resolve()
    again = f"dlrmctl calibrate {run.path}" + (f" --checkpoint {checkpoint.name}" if other else "")
    if not path.exists():
        raise UserError(f"{run.path} is not calibrated", again)
    found = read_record(path, Calibration.from_values, again)
    if found.weights != identity_of(checkpoint):
        earlier = "an earlier " if found.checkpoint == checkpoint.name else ""
        raise UserError(f"{path} was fitted to {earlier}{found.checkpoint}, not to {checkpoint.name}", again)
    return found


def identity_of(checkpoint: Path) -> str:
    """Eight hexadecimal digits that change with the weights of a checkpoint or compressed model.

    Raises:
        DataError: if its list of files cannot be read.
    """
    lists = [checkpoint / name for name in _LISTS if (checkpoint / name).is_file()]
    return f"{zlib.crc32(read_file(lists[0] if lists else checkpoint / _LISTS[0], most=MOST_BYTES)):08x}"


class CalibratedModel(nn.Module):
    """A model whose logits are calibrated."""

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        super().__init__()
        self.model = model
        self.slope, self.bias = calibration.slope, calibration.bias

    def forward(self, *inputs: Any) -> Tensor:
        logits_B: Tensor = self.model(*inputs)
        return self.slope * logits_B + self.bias
