"""Train DLRM recommendation models.

The libraries `data`, `embeddings`, `models` and `optim` are next to this directory in the repository and are imported
through links inside it (`dlrmctl.data`), so that a user's own `models.py` or `data/` is never imported by mistake. They
do not depend on each other or on the program. The program's packages, each importing only from packages before it:

    settings    the settings of a run             console     messages, tables, progress bars, pictures
    ranks       processes and their state         datasets    prepare, generate and show data
    assembly    settings -> model, optimizers     rundir      run directories and checkpoints
    plan        memory and time of a training     scoring     metrics, evaluate, compare, predict
    tracking    TensorBoard, MLflow, W&B          training    the training loop
    compress    smaller tables after training     baseline    a logistic regression
    export      a model for other programs        doctor      checks of the installation
    bench       measurements                      cli         commands and their options
    api         Python functions

The names below are imported when they are first used, so that `import dlrmctl` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrmctl.api.model import Neighbor, TrainedModel, load
    from dlrmctl.api.preparation import prepare
    from dlrmctl.api.training import Run, train
    from dlrmctl.data.errors import DataError
    from dlrmctl.datasets.prepare import Prepared
    from dlrmctl.errors import UserError
    from dlrmctl.optim.shampoo import DistributedShampoo
    from dlrmctl.settings.config import Config

__all__ = [
    "Config",
    "DataError",
    "DistributedShampoo",
    "Neighbor",
    "Prepared",
    "Run",
    "TrainedModel",
    "UserError",
    "load",
    "prepare",
    "train",
]

_ORIGIN = {
    "Config": "dlrmctl.settings.config",
    "DataError": "dlrmctl.data.errors",
    "DistributedShampoo": "dlrmctl.optim.shampoo",
    "TrainedModel": "dlrmctl.api.model",
    "Neighbor": "dlrmctl.api.model",
    "Prepared": "dlrmctl.datasets.prepare",
    "Run": "dlrmctl.api.training",
    "UserError": "dlrmctl.errors",
    "load": "dlrmctl.api.model",
    "prepare": "dlrmctl.api.preparation",
    "train": "dlrmctl.api.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("dlrmctl")
    if name not in _ORIGIN:
        raise AttributeError(f"module 'dlrmctl' has no attribute {name!r}")
    return getattr(importlib.import_module(_ORIGIN[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
