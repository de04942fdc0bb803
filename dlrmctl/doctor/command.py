"""Runs all checks and shows what they found."""

from collections.abc import Iterator

from rich.text import Text

from dlrmctl.console import output, print_json, say
from dlrmctl.doctor.finding import Finding, can_train, to_json
from dlrmctl.doctor.machine import check_machine
from dlrmctl.doctor.packages import check_packages
from dlrmctl.doctor.smoke import check_training

_MARKS = {"ok": ("ok      ", "green"), "warning": ("warning ", "yellow"), "problem": ("problem ", "bold red")}


def examine(*, smoke: bool) -> Iterator[list[Finding]]:
    """The findings, area by area.

    Args:
        smoke: also train for two steps on two ranks.
    """
    yield check_packages()
    yield check_machine()
    if smoke:
        yield [check_training()]


def doctor(*, smoke: bool, as_json: bool) -> int:
    """Examines, reports, and gives the exit status: 1 if training cannot work."""
    findings: list[Finding] = []
    say("importing every package, asking the machine" + (", training on two ranks" if smoke else ""))
    for area in examine(smoke=smoke):
        findings += area
        if not as_json:
            _show(area)
    if as_json:
        print_json(to_json(findings))
    elif not can_train(findings):
        output.print(f"training cannot work: {_count(findings, 'problem')}")
    else:
        output.print(f"training can work here: {_count(findings, 'warning')}")
    return 0 if can_train(findings) else 1


def _count(findings: list[Finding], status: str) -> str:
    count = sum(finding.status == status for finding in findings)
    return f"{count or 'no'} {status}{'s'[: count != 1]}"


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark, style = _MARKS[finding.status]
        output.print(Text.assemble((mark, style), f"{finding.name:<{width}}  {finding.found}"))
        if finding.remedy:
            output.print(Text.assemble(" " * len(mark), ("-> ", "bold"), finding.remedy))
