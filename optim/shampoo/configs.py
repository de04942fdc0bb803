"""What is grafted and how blocks are preconditioned, as plain values that a state dict can carry."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SGDGrafting:
    """The step length of SGD: the norm of the (filtered) gradient itself."""


@dataclass(frozen=True)
class AdaGradGrafting:
    epsilon: float = 1e-10

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)


@dataclass(frozen=True)
class RMSpropGrafting:
    """`beta2` is torch.optim.RMSprop's `alpha`; no bias correction."""

    beta2: float = 0.99
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_beta2(self.beta2)


@dataclass(frozen=True)
class AdamGrafting:
    """Adam's second moment, with bias correction; the first moment is Shampoo's filtered gradient."""

    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_beta2(self.beta2)


@dataclass(frozen=True)
class RootInverse:
    """Shampoo proper: every dimension is multiplied by the inverse root of its factor matrix."""


@dataclass(frozen=True)
class EigenvalueCorrected:
    """Adam in the eigenbasis of the factor matrices (SOAP).

    Args:
        method: "eigh" renews a basis exactly; "qr" turns the old one by QR iterations, which is cheaper on GPUs.
        max_iterations: of "qr", per refresh.
        tolerance: of "qr"; a basis in which the factor's off-diagonal part is at most this share of it stays.
    """

    method: str = "qr"
    max_iterations: int = 1
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in ("eigh", "qr"):
            raise ValueError(f"eigenbasis method={self.method!r} must be 'eigh' or 'qr'")
        if self.max_iterations < 1:
            raise ValueError(f"eigenbasis max_iterations={self.max_iterations} must be at least 1")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"eigenbasis tolerance={self.tolerance} must lie in [0, 1]")


Grafting = SGDGrafting | AdaGradGrafting | RMSpropGrafting | AdamGrafting
Preconditioner = RootInverse | EigenvalueCorrected
GRAFTINGS: tuple[type, ...] = (SGDGrafting, AdaGradGrafting, RMSpropGrafting, AdamGrafting)
PRECONDITIONERS: tuple[type, ...] = (RootInverse, EigenvalueCorrected)


def config_to_dict(config: Grafting | Preconditioner | None) -> dict[str, Any] | None:
    """Plain data for a state dict, which must load with `weights_only=True`."""
    return None if config is None else {"kind": type(config).__name__, **asdict(config)}


def config_from_dict(data: dict[str, Any] | None) -> Any:
    """The inverse of `config_to_dict`.

    Raises:
        ValueError: if the kind is unknown.
    """
    if data is None:
        return None
    kinds = {cls.__name__: cls for cls in GRAFTINGS + PRECONDITIONERS}
    fields = dict(data)
    kind = fields.pop("kind")
    if kind not in kinds:
        raise ValueError(f"configuration kind {kind!r} is not one of {', '.join(kinds)}")
    return kinds[kind](**fields)


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0:
        raise ValueError(f"grafting epsilon={epsilon} must be at least 0")


def _check_beta2(beta2: float) -> None:
    if not 0 < beta2 < 1:
        raise ValueError(f"grafting beta2={beta2} must lie in (0, 1); for a plain sum use AdaGradGrafting")
