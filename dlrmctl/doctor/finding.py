"""The outcome of a check, and the step that fixes a problem."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        area: the group of the check, such as "packages".
        name: what was checked.
        status: "problem" means that training cannot work, "warning" that it works with limits.
        found: what was found, or what is wrong with it.
        remedy: the command, or the step, that fixes it.
    """

    area: str
    name: str
    status: Status
    found: str
    remedy: str | None = None


def can_train(findings: Iterable[Finding]) -> bool:
    """Returns whether no finding prevents training."""
    return all(finding.status != "problem" for finding in findings)


def to_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """Returns plain values: the verdict, and every finding."""
    findings = list(findings)
    return {"can_train": can_train(findings), "findings": [asdict(finding) for finding in findings]}
