"""Delivers a benchmark result: a table or JSON, a file, a picture, and a comparison with an earlier one.

It does not import torch, so that problems with files are reported before anything is measured.
"""

import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dlrmctl.bench.against import read_result
from dlrmctl.console.console import finite, print_json, say
from dlrmctl.console.pictures import check_picture
from dlrmctl.data.files import check_writable, is_stream, output_file
from dlrmctl.errors import UserError
from dlrmctl.ranks.cores import usable_cores


@dataclass
class Delivery:
    """The outputs of a benchmark.

    Args:
        command: "step", "shampoo", ...
        as_json: print JSON on standard output instead of tables.
        out: a file to write, or a pipe, or /dev/stdout.
        plot: a picture to write.
        against: a file that an earlier run wrote; read at once, since `out` may be the same.
        others: files that the measurement itself writes, by option.

    Raises:
        UserError, DataError: if a file cannot be written, or `against` is not a result of this command.
    """

    command: str
    as_json: bool
    out: Path | None
    plot: Path | None
    against: Path | None
    others: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.plot is not None:
            check_writable(check_picture(self.plot))
        written = {**self.others, **({} if self.out is None else {"--out": self.out})}
        for option, path in written.items():
            if not path.parent.is_dir():
                raise UserError(f"{path.parent}: no such directory", f"mkdir -p {path.parent}")
            if path.is_dir():
                raise UserError(f"{path} is a directory; {option} takes a file")
            if option != "--out" or not is_stream(path):
                check_writable(path)
        if self.plot is not None:
            written["--plot"] = self.plot
        options: dict[Path, str] = {}
        for option, path in written.items():
            first = options.setdefault(path.resolve(), option)
            if first != option and not is_stream(path):
                raise UserError(f"{path}: {first} and {option} name the same file")
        self._earlier = None if self.against is None else read_result(self.against, self.command)

    def deliver(
        self, measured: Mapping[str, Any], show: Callable[[dict[str, Any]], None], options: Mapping[str, Any]
    ) -> None:
        """Shows and writes a result.

        Args:
            measured: plain values.
            show: prints it.
            options: the options of the measurement, besides the settings.

        Raises:
            DataError: if a file cannot be written, after showing the result.
        """
        result: dict[str, Any] = tagged(self.command, measured, options)
        try:
            self._show(result, show)
        finally:  # a closed pipe must not lose the files
            try:
                if self.out is not None:
                    _write(self.out, result)
            finally:
                if self.plot is not None:
                    from dlrmctl.bench.pictures import draw

                    draw(result, self.plot)
                    say(f"wrote {self.plot}")

    def _show(self, result: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
        comparison = None
        if self._earlier is not None:
            from dlrmctl.bench.against import compare

            comparison = compare(self._earlier, result)
        if self.as_json:
            print_json(result | ({"against": {"file": str(self.against), **comparison}} if comparison else {}))
            return
        show(result)
        if comparison:
            from dlrmctl.bench.against import show_comparison

            show_comparison(str(self.against), comparison)


def tagged(command: str, measured: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Returns a result with what it depends on, as plain values that a file can store."""
    result = {"command": command, "options": options, "environment": environment(measured), **measured}
    return json.loads(json.dumps(finite(result), default=str))


def environment(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Returns properties of the machine and the packages that figures depend on."""
    import torch

    settings = measured.get("settings", {})
    device = settings.get("train", {}).get("device", "auto")
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchrec": version("torchrec"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _write(path: Path, result: dict[str, Any]) -> None:
    sys.stdout.flush()  # the file may be standard output
    with output_file(path) as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    say(f"wrote {path}")
