"""Chooses the precision and the memory of the tables: as set on GPUs, float32 in their own memory on CPUs."""

from dataclasses import dataclass, fields

from dlrmctl.errors import UserError
from dlrmctl.settings.config import Config

_WITHOUT_GPU = {
    "table_precision": ("fp32", "the kernels on a CPU round to the nearest number, which loses small updates"),
    "placement": ("hbm", "the tables of a CPU are in its memory already"),
}


@dataclass(frozen=True)
class TableStorage:
    """How tables are held; see the settings of the same names."""

    table_precision: str = "fp32"
    placement: str = "hbm"
    uvm_cache: float = 0.2


IN_ITS_OWN_MEMORY = TableStorage()


def table_storage(config: Config, device_type: str) -> TableStorage:
    """Returns how the tables of a model are held on "cpu" or "cuda".

    A run that was trained on GPUs can be scored on a CPU, whatever its settings.
    """
    if device_type == "cpu":
        return IN_ITS_OWN_MEMORY
    return TableStorage(**{item.name: getattr(config.embeddings, item.name) for item in fields(TableStorage)})


def refuse_without_gpu(config: Config, device_type: str) -> None:
    """Refuses to train on a CPU with settings that have a meaning on a GPU only.

    Raises:
        UserError: naming the first one.
    """
    for name, (only, reason) in _WITHOUT_GPU.items():
        value = getattr(config.embeddings, name)
        if device_type == "cpu" and value != only:
            raise UserError(
                f"embeddings.{name} = {value} needs a GPU: {reason}",
                f"--{name.replace('_', '-')} {only}, or --device cuda",
            )
