"""Configurations of preconditioning and grafting, which convert to plain values for state dicts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ROOT_METHODS = ("eigh", "pseudo_inverse", "newton", "higher_order")
STATISTICS = ("shampoo", "kl", "kl_mean")


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
    """RMSprop's second moment, without bias correction; `beta2` is torch.optim.RMSprop's `alpha`.

    Args:
        drop_weighting_factor_on_gsquare: adds the squared gradient with weight 1 instead of `1 - beta2`.
    """

    beta2: float = 0.99
    epsilon: float = 1e-8
    drop_weighting_factor_on_gsquare: bool = False

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_beta2(self.beta2)


@dataclass(frozen=True)
class AdamGrafting:
    """Adam's second moment, with bias correction; the first moment is Shampoo's filtered gradient.

    Args:
        drop_weighting_factor_on_gsquare: adds the squared gradient with weight 1 instead of `1 - beta2`, and omits the
            bias correction.
    """

    beta2: float = 0.999
    epsilon: float = 1e-8
    drop_weighting_factor_on_gsquare: bool = False

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        _check_beta2(self.beta2)


@dataclass(frozen=True)
class RootInverse:
    """Shampoo proper: every dimension is multiplied by the inverse root of its factor matrix.

    Args:
        method: how roots are computed. "eigh"; "pseudo_inverse", which adds no epsilon and drops eigenvalues up to
            `rank_tolerance` times the largest; "newton" and "higher_order", coupled iterations of matrix products, with
            "eigh" where they fail.
        max_iterations, tolerance: for the iterations; the tolerance is for the largest entry of `M - I`.
        order: order of "higher_order", >= 2 (2 is Newton's method).
        rel_epsilon: for "higher_order": the epsilon is at least this share of the largest absolute row sum, a bound of
            the largest eigenvalue.
        rank_tolerance: None means the size of the matrix times the machine epsilon, as in torch.linalg.matrix_rank.
        statistics: the products that a factor matrix sums up. "shampoo": `G G^T`. "kl": `G` is first multiplied by the
            other dimensions' inverse roots (KL-Shampoo; with exponent 1/2 a matrix has `G R^-1 G^T`). "kl_mean": the
            same, divided by the number of columns of the unfolded `G`, as in the paper; it keeps the scales of the
            factors of an oblong block close.
        trace_scaling: divide a factor matrix by the square root of its trace before taking its root.
    """

    method: str = "eigh"
    max_iterations: int = 100
    tolerance: float = 1e-6
    order: int = 3
    rel_epsilon: float = 0.0
    rank_tolerance: float | None = None
    statistics: str = "shampoo"
    trace_scaling: bool = False

    def __post_init__(self) -> None:
        _check_choice("root method", self.method, ROOT_METHODS)
        _check_choice("statistics", self.statistics, STATISTICS)
        _check_iterations("root", self.max_iterations, self.tolerance)
        _check_rank_tolerance(self.rank_tolerance)
        if self.order < 2:
            raise ValueError(f"root order={self.order} must be at least 2 (2 is Newton's method)")
        if not self.rel_epsilon >= 0 or (self.rel_epsilon > 0 and self.method != "higher_order"):
            raise ValueError(f"root rel_epsilon={self.rel_epsilon} must be at least 0, and 0 unless 'higher_order'")


@dataclass(frozen=True)
class Eigendecomposed:
    """Shampoo that keeps the eigenvectors and eigenvalues of the factor matrices and takes their root every step.

    Args:
        method: "eigh"; "qr", which rotates the last basis by QR iterations; "pseudo_inverse" as in RootInverse.
        max_iterations, tolerance: for "qr", as in EigenvalueCorrected.
        rank_tolerance, statistics, trace_scaling: as in RootInverse.
    """

    method: str = "eigh"
    max_iterations: int = 1
    tolerance: float = 0.0
    rank_tolerance: float | None = None
    statistics: str = "shampoo"
    trace_scaling: bool = False

    def __post_init__(self) -> None:
        _check_choice("eigenbasis method", self.method, ("eigh", "qr", "pseudo_inverse"))
        _check_choice("statistics", self.statistics, STATISTICS)
        _check_iterations("eigenbasis", self.max_iterations, self.tolerance)
        _check_rank_tolerance(self.rank_tolerance)


@dataclass(frozen=True)
class EigenvalueCorrected:
    """Adam in the eigenbasis of the factor matrices (SOAP).

    Args:
        method: "eigh" computes a basis exactly; "qr" rotates the old one by QR iterations, which is faster on GPUs.
        max_iterations: for "qr", per refresh.
        tolerance: for "qr"; a basis is kept if the factor's off-diagonal part is at most this share of it.
        ignored_basis_change_dims: {order of the block: dimensions} that are not rotated; a matrix with one rotated
            dimension is one-sided.
        trace_scaling: as in RootInverse.
        max_ratio: limit of a direction in the eigenbasis, in units of the largest possible for a constant basis. If a
            basis turns fast, old gradients meet a second moment that has not seen them in it: with "qr" at frequency 1
            the ratio reaches 1e6 and training breaks. None: no limit, as in Meta's implementation.
    """

    method: str = "qr"
    max_iterations: int = 1
    tolerance: float = 0.0
    ignored_basis_change_dims: Mapping[int, Sequence[int]] | None = None
    trace_scaling: bool = False
    max_ratio: float | None = 10.0

    def __post_init__(self) -> None:
        _check_choice("eigenbasis method", self.method, ("eigh", "qr"))
        _check_iterations("eigenbasis", self.max_iterations, self.tolerance)
        if self.max_ratio is not None and self.max_ratio < 1:
            raise ValueError(f"max_ratio={self.max_ratio} must be at least 1, or None")
        for order, dims in (self.ignored_basis_change_dims or {}).items():
            if not all(0 <= dim < order for dim in dims):
                raise ValueError(f"ignored_basis_change_dims[{order}]={dims} must lie in 0..{order - 1}")


Grafting = SGDGrafting | AdaGradGrafting | RMSpropGrafting | AdamGrafting
Preconditioner = RootInverse | Eigendecomposed | EigenvalueCorrected
GRAFTINGS: tuple[type, ...] = (SGDGrafting, AdaGradGrafting, RMSpropGrafting, AdamGrafting)
PRECONDITIONERS: tuple[type, ...] = (RootInverse, Eigendecomposed, EigenvalueCorrected)


def config_to_dict(config: Grafting | Preconditioner | None) -> dict[str, Any] | None:
    """Returns a configuration as plain data, for state dicts that load with `weights_only=True`."""
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


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def _check_iterations(what: str, max_iterations: int, tolerance: float) -> None:
    if max_iterations < 1:
        raise ValueError(f"{what} max_iterations={max_iterations} must be at least 1")
    if not 0 <= tolerance <= 1:
        raise ValueError(f"{what} tolerance={tolerance} must lie in [0, 1]")


def _check_rank_tolerance(tolerance: float | None) -> None:
    if tolerance is not None and not 0 <= tolerance < 1:
        raise ValueError(f"rank_tolerance={tolerance} must lie in [0, 1), or be None")
