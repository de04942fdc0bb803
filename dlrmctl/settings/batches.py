"""The settings of a batch that grows with the noise of gradients."""

from dlrmctl.errors import UserError

GEOMETRIES = ("l2", "l1", "spectral")
# Geometries that fit each dense optimizer, its own first. Steps of sgd, signum and muon are steepest descent in the
# norm whose dual is named; for the others it is a proxy.
_FITTING = {
    "sgd": ("l2",),
    "signum": ("l1",),
    "muon": ("spectral",),
    "shampoo": ("spectral", "l2"),
    "adagrad": ("l1", "l2"),
    "adamw": ("l1", "l2"),
}
PROXIES = ("shampoo", "adagrad", "adamw")
_THETA = {"l1": 0.7, "l2": 1.0, "spectral": 1.0}
_MOST_GROWTH = 8  # from the first batch to the largest, by default
FEWEST_EXAMPLES = 2  # per chunk of a batch
CHUNKS = 8  # of a global batch, in an estimate of noise


def geometry_of(geometry: str, dense_optimizer: str) -> str:
    """The geometry that `--gns-geometry` stands for."""
    return _FITTING[dense_optimizer][0] if geometry == "auto" else geometry


def theta_of(theta: float | None, geometry: str) -> float:
    """The ratio of noise and gradient that `--gns-theta` stands for."""
    return _THETA[geometry] if theta is None else theta


def largest_batch(first: int, largest: int | None, ranks: int) -> int:
    """The largest global batch of a schedule, a multiple of the number of ranks."""
    most = _MOST_GROWTH * first if largest is None else largest
    return most - most % ranks


def check_batches(
    schedule: str,
    *,
    geometry: str,
    theta: float | None,
    largest: int | None,
    first: int | None,
    ranks: int,
    dense_optimizer: str,
) -> None:
    """Refuses settings of the batch schedule that contradict others.

    Args:
        first: the first batch; None if it will follow from the data.

    Raises:
        UserError: naming them.
    """
    if schedule == "constant":
        given = {"gns_geometry": None if geometry == "auto" else geometry, "gns_theta": theta, "batch_max": largest}
        for name, value in given.items():
            if value is not None:
                raise UserError(f"train.{name} = {value} needs train.batch_schedule = gns, not {schedule}")
        return
    if geometry != "auto" and geometry not in _FITTING[dense_optimizer]:
        raise UserError(
            f"train.gns_geometry = {geometry} does not fit optim.dense_optimizer = {dense_optimizer}",
            f"--gns-geometry {' or '.join(_FITTING[dense_optimizer])}",
        )
    if first is None:
        return
    if largest is not None and largest_batch(first, largest, ranks) < first:
        raise UserError(
            f"train.batch_max = {largest} is below the first batch, train.batch_size = {first}",
            f"--batch-max {_MOST_GROWTH * first}, or a smaller --batch-size",
        )
    if first < CHUNKS * FEWEST_EXAMPLES or first < ranks * FEWEST_EXAMPLES:
        least = max(CHUNKS, ranks) * FEWEST_EXAMPLES
        raise UserError(
            f"train.batch_size = {first} is too small to measure the noise of its gradients",
            f"--batch-size {least + -least % ranks}, or more",
        )
