"""Search for the smallest tables that keep a budget of NE, with a margin of two standard errors.

A weighted error predicts the increase of NE up to a constant. Each table's constant is calibrated by one evaluation;
then choices along the frontier are evaluated until the smallest one that keeps the budget is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dlrmctl.compress.fitting import TableOptions
from dlrmctl.compress.trial import Trial
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import fixed, with_error
from dlrmctl.embeddings.compression.frontier import Choice, Frontier, predicted_options
from dlrmctl.embeddings.compression.rules.rows import Compressed

_SPREAD = 0.5  # assumed relative spread of the tables' constants around the common one
_LEAST_SHARE = 0.2  # smallest constant of a table, as a fraction of the common one
_JOINT_EVALUATIONS = 8
_CLOSE = 0.97  # fraction of the budget at which the search ends


@dataclass(frozen=True)
class Joint:
    """An evaluated choice, with its predicted and measured relative increase of NE."""

    choice: Choice
    predicted: float
    measured: float
    se: float

    @property
    def upper(self) -> float:
        """The larger of the two, plus two standard errors.

        The smallest choice with a low enough measurement is often a lucky one; its prediction is not lucky.
        """
        return max(self.measured, self.predicted) + 2 * self.se

    def judged(self, budget: float) -> str:
        """The comparison with the budget in words."""
        rise, se, upper = 100 * max(self.measured, self.predicted), 100 * self.se, 100 * self.upper
        sign = "<=" if self.upper <= budget else ">"
        form = ".4f" if upper >= 1e-3 else ".4g"
        return f"{rise:{form}} + 2 x {se:{form}} = {upper:{form}} {sign} {100 * budget:g} %"


@dataclass
class BudgetSearch:
    """State of the search.

    Attributes:
        constants: increase of NE per unit of proxy, by table.
        calibrations: by table, the option that was evaluated alone, its increase of NE and standard error.
        frontier: the Pareto-optimal choices by the calibrated prediction.
        joints: the evaluated choices, in order.
    """

    tables: Sequence[TableOptions]
    constants: list[float]
    calibrations: list[tuple[str, float, float]]
    frontier: Frontier
    joints: list[Joint] = field(default_factory=list)

    def methods(self, choice: Choice) -> dict[str, str]:
        """Table -> method."""
        return {
            table.name: table.fitted[index].method for table, index in zip(self.tables, choice.indices, strict=True)
        }

    def evaluate(self, trial: Trial, choice: Choice) -> Joint:
        """Evaluates a choice and records it."""
        rise, se = trial.ne_rise(realize(self.tables, choice))
        joint = Joint(choice, choice.error, rise, se)
        self.joints.append(joint)
        return joint


def realize(tables: Sequence[TableOptions], choice: Choice) -> dict[str, Compressed]:
    """The compressed tables of a choice."""
    return {
        table.name: table.table(table.fitted[index].method) for table, index in zip(tables, choice.indices, strict=True)
    }


def calibrate(tables: Sequence[TableOptions], trial: Trial, *, around: float, progress: BarDisplay) -> BudgetSearch:
    """Calibrates each table's constant.

    Args:
        around: increase of NE of interest; evaluates options that are expected to cause about this much.
    """
    progress.begin("calibrating tables", 1 + len(tables))
    common = _common_constant(tables, trial)
    progress.advance()
    constants, calibrations = [], []
    for table in tables:
        option = min(table.fitted, key=lambda fitted: _distance(common * fitted.proxy, around))
        rise, se = trial.ne_rise({table.name: table.table(option.method)})
        calibrations.append((option.method, rise, se))
        constants.append(_pooled(common, option.proxy, rise, se))
        progress.advance(about=f"{table.name} by {option.method}: NE {fixed(100 * rise, '+.4f')} %")
    proxies = [[fitted.proxy for fitted in table.fitted] for table in tables]
    sizes = [[fitted.num_bytes for fitted in table.fitted] for table in tables]
    return BudgetSearch(tables, constants, calibrations, Frontier(predicted_options(sizes, proxies, constants)))


def _common_constant(tables: Sequence[TableOptions], trial: Trial) -> float:
    """Increase of NE per unit of proxy with all tables stored coarsely, so that it exceeds the noise."""
    rough = {}
    total = 0.0
    for table in tables:
        option = max(table.fitted, key=lambda fitted: fitted.proxy)
        rough[table.name] = table.table(option.method)
        total += option.proxy
    rise, se = trial.ne_rise(rough)
    return max(rise, se, 1e-12) / total if total else 1.0


def _distance(rise: float, wanted: float) -> float:
    return abs(math.log(max(rise, 1e-300) / wanted))


def _pooled(common: float, proxy: float, rise: float, se: float) -> float:
    """A table's constant: the measurement, shrunk towards the common one by its uncertainty."""
    if proxy <= 0:
        return common
    own, own_error = rise / proxy, max(se / proxy, 1e-300)
    trust = 1 / own_error**2
    prior = 1 / (_SPREAD * common) ** 2
    return max((trust * own + prior * common) / (trust + prior), _LEAST_SHARE * common)


def within_budget(search: BudgetSearch, trial: Trial, budget: float, *, progress: BarDisplay) -> Joint:
    """Finds the smallest choice that keeps the budget; returns the most exact one if none does.

    Args:
        budget: relative increase of NE, such as 0.001.
    """
    progress.begin("searching", _JOINT_EVALUATIONS)
    low, high = 0.0, math.inf  # predictions that kept and exceeded the budget
    best: Joint | None = None
    limit = budget / 2
    tried: set[tuple[int, ...]] = set()
    for _ in range(_JOINT_EVALUATIONS):
        try:
            choice = search.frontier.within_error(limit)
        except ValueError:  # the frontier has no choice this exact
            choice = search.frontier.choice(-1)
        if choice.indices in tried:
            break
        tried.add(choice.indices)
        joint = search.evaluate(trial, choice)
        kept = joint.upper <= budget
        progress.advance(about=_verdict(joint, budget))
        if kept:
            low = max(low, limit)
            best = joint if best is None or choice.num_bytes < best.choice.num_bytes else best
            if joint.upper >= _CLOSE * budget:
                break
        else:
            high = min(high, limit)
        limit = _next_limit(limit, joint, budget, low, high)
    if best is None:  # float32 tables, which are always an option, change nothing
        best = search.evaluate(trial, search.frontier.choice(-1))
        progress.advance(about=_verdict(best, budget))
    if best.choice.error == 0 and len(search.frontier.num_bytes) > 1:  # is nothing smaller good enough?
        choice = search.frontier.choice(-2)
        if choice.indices not in tried:
            joint = search.evaluate(trial, choice)
            progress.advance(about=_verdict(joint, budget))
            best = joint if joint.upper <= budget else best
    return best


def _verdict(joint: Joint, budget: float) -> str:
    verdict = "keeps" if joint.upper <= budget else "breaks"
    return f"NE {with_error(joint.measured, joint.se, '+.4f', scale=100)} % {verdict} the budget"


def _next_limit(limit: float, joint: Joint, budget: float, low: float, high: float) -> float:
    """The limit at which the increase would proportionally meet the budget; otherwise the middle of the known range."""
    wanted = limit * budget / joint.upper if joint.upper > 0 else limit * 2
    if not low < wanted < high:
        wanted = limit * 2 if math.isinf(high) else (low + high) / 2
    return wanted
