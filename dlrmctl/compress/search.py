"""The smallest tables whose rise of NE stays inside a budget, with two standard errors to spare.

A weighted error predicts the rise of NE up to a constant. Each table's constant is calibrated by one evaluation; then
choices along the frontier are evaluated as a whole until the smallest one that keeps the budget is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from dlrmctl.compress.fitting import TableOptions
from dlrmctl.compress.trial import Trial
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import with_error
from dlrmctl.embeddings.compression.frontier import Choice, Frontier, predicted_options
from dlrmctl.embeddings.compression.rules.rows import Compressed

_SPREAD = 0.5  # of a table's constant around the common one
_LEAST_SHARE = 0.2  # a constant is at least this share of the common one
_JOINT_EVALUATIONS = 8
_CLOSE = 0.97  # a choice that uses this share of the budget is not improved


@dataclass(frozen=True)
class Joint:
    """A choice that was evaluated as a whole: predicted and measured relative rise of NE."""

    choice: Choice
    predicted: float
    measured: float
    se: float

    @property
    def upper(self) -> float:
        """The larger of the two with two standard errors to spare.

        The smallest choice whose measurement is low enough is often one that was lucky; its prediction is not.
        """
        return max(self.measured, self.predicted) + 2 * self.se

    def judged(self, budget: float) -> str:
        """The sum that was held against the budget, and what came of it."""
        rise, se, upper = 100 * max(self.measured, self.predicted), 100 * self.se, 100 * self.upper
        sign = "<=" if self.upper <= budget else ">"
        form = ".4f" if upper >= 1e-3 else ".4g"
        return f"{rise:{form}} + 2 x {se:{form}} = {upper:{form}} {sign} {100 * budget:g} %"


@dataclass
class BudgetSearch:
    """Everything that was learned.

    Attributes:
        constants: rise of NE per unit of proxy, table by table.
        calibrations: per table the option evaluated alone, its rise and standard error.
        frontier: all choices worth making, by the calibrated prediction.
        joints: the choices that were evaluated, in order.
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
        """Evaluates a choice as a whole, and remembers it."""
        rise, se = trial.ne_rise(realize(self.tables, choice))
        joint = Joint(choice, choice.error, rise, se)
        self.joints.append(joint)
        return joint


def realize(tables: Sequence[TableOptions], choice: Choice) -> dict[str, Compressed]:
    """The tables of a choice."""
    return {
        table.name: table.table(table.fitted[index].method) for table, index in zip(tables, choice.indices, strict=True)
    }


def calibrate(tables: Sequence[TableOptions], trial: Trial, *, around: float, progress: BarDisplay) -> BudgetSearch:
    """Finds each table's constant.

    Args:
        around: the rise of NE that matters; options are evaluated that are expected to cause about so much.
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
        progress.advance(about=f"{table.name} by {option.method}: NE {100 * rise:+.4f} %")
    proxies = [[fitted.proxy for fitted in table.fitted] for table in tables]
    sizes = [[fitted.num_bytes for fitted in table.fitted] for table in tables]
    return BudgetSearch(tables, constants, calibrations, Frontier(predicted_options(sizes, proxies, constants)))


def _common_constant(tables: Sequence[TableOptions], trial: Trial) -> float:
    """Rise of NE per unit of proxy when every table is stored roughly: enough to be seen above the noise."""
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
    """A table's constant: what was measured, drawn to the common one as far as the measurement is uncertain."""
    if proxy <= 0:
        return common
    own, own_error = rise / proxy, max(se / proxy, 1e-300)
    trust = 1 / own_error**2
    prior = 1 / (_SPREAD * common) ** 2
    return max((trust * own + prior * common) / (trust + prior), _LEAST_SHARE * common)


def within_budget(search: BudgetSearch, trial: Trial, budget: float, *, progress: BarDisplay) -> Joint:
    """The smallest choice found whose rise with two standard errors keeps the budget; the most exact one if none does.

    Args:
        budget: relative rise of NE, such as .001.
    """
    progress.begin("searching", _JOINT_EVALUATIONS)
    low, high = 0.0, math.inf  # predicted rises that kept and broke the budget
    best: Joint | None = None
    limit = budget / 2
    tried: set[tuple[int, ...]] = set()
    for _ in range(_JOINT_EVALUATIONS):
        try:
            choice = search.frontier.within_error(limit)
        except ValueError:  # nothing on the frontier is as exact as that
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
    if best is None:  # float32 tables are among the options, and they change nothing
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
    """The limit at which the rise would meet the budget in proportion; else half way to what is known."""
    wanted = limit * budget / joint.upper if joint.upper > 0 else limit * 2
    if not low < wanted < high:
        wanted = limit * 2 if math.isinf(high) else (low + high) / 2
    return wanted
