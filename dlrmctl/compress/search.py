"""Search for the smallest tables that keep a budget of NE, with a margin of two standard errors.

Three kinds of choices are evaluated. Uniform ones store all tables with one method; bisection finds the smallest that
keeps the budget, so that the search never ends with nothing. Choices that compress a single table, and all others,
calibrate a prediction: an increase of NE of each table proportional to its weighted error. Then choices that the
prediction says keep the budget are evaluated, each after the prediction has learned from those before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlrmctl.compress.options import EXACT, TableOptions
from dlrmctl.console.progress import BarDisplay
from dlrmctl.console.text import fixed, with_error
from dlrmctl.embeddings.compression.frontier import Choice, Frontier, predicted_options
from dlrmctl.embeddings.compression.rules.rows import Compressed

_SPREAD = 0.5  # assumed relative spread of the tables' constants around the common one
_LEAST_SHARE = 0.2  # smallest constant of a table, as a fraction of the common one
_CURVATURE = 0.1  # assumed relative error of the prediction, which is linear in the weighted error
_JOINT_EVALUATIONS = 10
_CLOSE = 0.97  # fraction of the budget at which the search ends
_LEAST_AIM = 0.1
_LOWER, _HIGHER = 0.85, 1.12  # factors of the increase to aim at, after a failure and after a success
_SMALLER = "int8"  # what a uniform choice stores a table with if its method would not make it smaller

# Fits the options with these indices, one of each table; returns the increase of NE and its standard error.
Evaluate = Callable[[Sequence[int]], tuple[float, float]]


@dataclass(frozen=True)
class Joint:
    """An evaluated choice, with its predicted and measured relative increase of NE.

    The prediction is None for uniform choices, which are not selected by it.
    """

    choice: Choice
    predicted: float | None
    measured: float
    se: float

    @property
    def rise(self) -> float:
        """The larger of the two, at least 0.

        The smallest choice with a low enough measurement is often a lucky one; its prediction is not lucky.
        """
        return max(self.measured, self.predicted or 0.0)

    @property
    def upper(self) -> float:
        """The increase plus two standard errors."""
        return self.rise + 2 * self.se

    def judged(self, budget: float) -> str:
        """The comparison with the budget in words."""
        rise, se, upper = 100 * self.rise, 100 * self.se, 100 * self.upper
        sign = "<=" if self.upper <= budget else ">"
        form = ".4f" if upper >= 1e-3 else ".4g"
        return f"{rise:{form}} + 2 x {se:{form}} = {upper:{form}} {sign} {100 * budget:g} %"


@dataclass
class BudgetSearch:
    """The search and its results.

    Args:
        tables: with their options.
        evaluate: measures a choice.
        budget: relative increase of NE, such as 0.001.
        progress: shows the evaluations.

    Attributes:
        constants: predicted increase of NE per unit of proxy, by table.
        calibrations: by table, the option that was evaluated alone, its increase of NE and standard error.
        joints: the evaluated choices of all tables, in order.
    """

    tables: Sequence[TableOptions]
    evaluate: Evaluate
    budget: float
    progress: BarDisplay
    constants: list[float] = field(default_factory=list)
    calibrations: list[tuple[str, float, float]] = field(default_factory=list)
    joints: list[Joint] = field(default_factory=list)
    _known: list[tuple[list[float], float, float]] = field(default_factory=list)  # proxies, increase, standard error

    def run(self) -> Joint:
        """Returns the smallest evaluated choice that keeps the budget; float32 tables do."""
        self._bisect_uniform()
        self._calibrate()
        self._search()
        kept = [joint for joint in self.joints if joint.upper <= self.budget]
        return min(kept, key=lambda joint: joint.choice.num_bytes)

    @property
    def frontier(self) -> Frontier:
        """The Pareto-optimal choices by the calibrated prediction."""
        return frontier_of(self.tables, self.constants)

    def methods(self, choice: Choice) -> dict[str, str]:
        """Table -> method."""
        return {
            table.name: table.options[index].method for table, index in zip(self.tables, choice.indices, strict=True)
        }

    def _bisect_uniform(self) -> None:
        """Finds the smallest uniform choice that keeps the budget, assuming that smaller ones increase NE more."""
        choices = uniform_choices(self.tables)
        exact = choices[0]
        self.joints.append(Joint(exact, None, 0.0, 0.0))
        low, high = 0, len(choices)
        while high - low > 1:
            self._show("uniform methods", math.ceil(math.log2(high - low)))
            middle = (low + high) // 2
            joint = self._measure(choices[middle].indices, predicted=False)
            low, high = (middle, high) if joint.upper <= self.budget else (low, middle)

    def _calibrate(self) -> None:
        """Evaluates each table alone, with an option that is expected to use up half of the budget."""
        common = self._common()
        for number, table in enumerate(self.tables):
            self._show("calibrating tables", len(self.tables) - number, number)
            option = min(
                range(len(table.options)), key=lambda i: _distance(common * table.options[i].proxy, self.budget / 2)
            )
            indices = [_position(other, EXACT.name) for other in self.tables]
            indices[number] = option
            rise, se = self._learn(indices)
            method = table.options[option].method
            self.calibrations.append((method, rise, se))
            self.progress.show(f"{table.name} by {method}: NE {fixed(100 * rise, '+.4f')} %")

    def _search(self) -> None:
        """Evaluates choices by the prediction, aiming lower after a failure and higher after a success."""
        tried = {joint.choice.indices for joint in self.joints}
        aim = 1.0
        for number in range(_JOINT_EVALUATIONS):
            self.constants = self._predict()
            choice = self._proposal(aim)
            while self._failed(choice) and aim > _LEAST_AIM:  # the prediction has changed too little
                aim *= _LOWER
                choice = self._proposal(aim)
            best = min(joint.choice.num_bytes for joint in self.joints if joint.upper <= self.budget)
            if choice.indices in tried or choice.num_bytes >= best:
                break
            tried.add(choice.indices)
            self._show("searching", _JOINT_EVALUATIONS - number, number)
            joint = self._measure(choice.indices, predicted=True)
            kept = joint.upper <= self.budget
            if kept and joint.measured + 2 * joint.se >= _CLOSE * self.budget:
                break
            aim = min(1.0, _HIGHER * aim) if kept else _LOWER * aim
        self.constants = self._predict()

    def _proposal(self, aim: float) -> Choice:
        """The smallest choice whose predicted increase plus two standard errors is `aim` times the budget.

        A standard error grows with the root of the increase: both come from the squares of the changes of the logits.
        """
        ratios = [se / math.sqrt(rise) for _, rise, se in self._known if rise > 2 * se]
        spread = float(np.median(ratios)) if ratios else 0.0
        root = math.sqrt(spread**2 + aim * self.budget) - spread
        frontier = self.frontier
        try:
            return frontier.within_error(root**2)
        except ValueError:  # the frontier has no choice this exact
            return frontier.choice(-1)

    def _failed(self, choice: Choice) -> bool:
        return any(joint.choice.indices == choice.indices and joint.upper > self.budget for joint in self.joints)

    def _measure(self, indices: Sequence[int], *, predicted: bool) -> Joint:
        rise, se = self._learn(indices)
        # Once its options are fitted, a choice has another prediction than when it was made.
        prediction = priced(self.tables, indices, self.constants).error if predicted else None
        joint = Joint(priced(self.tables, indices), prediction, rise, se)
        self.joints.append(joint)
        verdict = "keeps" if joint.upper <= self.budget else "breaks"
        self.progress.show(f"NE {with_error(rise, se, '+.4f', scale=100)} % {verdict} the budget")
        return joint

    def _learn(self, indices: Sequence[int]) -> tuple[float, float]:
        rise, se = self.evaluate(indices)
        proxies = [table.options[index].proxy for table, index in zip(self.tables, indices, strict=True)]
        self._known.append((proxies, rise, se))
        return rise, se

    def _common(self) -> float:
        """Increase of NE per unit of proxy, from the uniform choice with an increase nearest to the budget."""
        known = [(sum(proxies), max(rise, se, 1e-12)) for proxies, rise, se in self._known if sum(proxies) > 0]
        if not known:
            return 1.0
        total, rise = min(known, key=lambda pair: _distance(pair[1], self.budget))
        return rise / total

    def _predict(self) -> list[float]:
        """The tables' constants: least squares over all evaluations, drawn to the common constant."""
        common = self._common()
        known = [(proxies, rise, se) for proxies, rise, se in self._known if sum(proxies) > 0]
        proxies_JT = np.array([proxies for proxies, _, _ in known]).reshape(len(known), len(self.tables)) * common
        rises_J = np.array([rise for _, rise, _ in known])
        errors_J = np.array([math.hypot(se, _CURVATURE * rise) for _, rise, se in known]).clip(min=1e-15)
        # In units of the common constant.
        scaled_JT = proxies_JT / errors_J[:, None]
        left = scaled_JT.T @ ((rises_J - proxies_JT.sum(1)) / errors_J)
        change_T = np.linalg.solve(scaled_JT.T @ scaled_JT + np.eye(len(self.tables)) / _SPREAD**2, left)
        found: list[float] = (common * (1 + change_T).clip(min=_LEAST_SHARE)).tolist()
        return found

    def _show(self, what: str, left: int, done: int = 0) -> None:
        self.progress.begin(what, done + left, done)


def frontier_of(tables: Sequence[TableOptions], constants: float | Sequence[float] = 1.0) -> Frontier:
    """The Pareto-optimal choices.

    Args:
        constants: increase of NE per unit of proxy, by table or for all.
    """
    sizes = [[option.num_bytes for option in table.options] for table in tables]
    proxies = [[option.proxy for option in table.options] for table in tables]
    return Frontier(predicted_options(sizes, proxies, constants))


def priced(tables: Sequence[TableOptions], indices: Sequence[int], constants: Sequence[float] | None = None) -> Choice:
    """The choice of these options, with its present bytes and error.

    Args:
        constants: increase of NE per unit of proxy, by table; None for the sum of the proxies.
    """
    chosen = [table.options[index] for table, index in zip(tables, indices, strict=True)]
    factors = [1.0] * len(chosen) if constants is None else constants
    error = sum(factor * option.proxy for factor, option in zip(factors, chosen, strict=True))
    return Choice(tuple(indices), sum(option.num_bytes for option in chosen), error)


def uniform_choices(tables: Sequence[TableOptions]) -> list[Choice]:
    """Choices that store all tables with one method, from float32 to the smallest; smaller ones have larger errors.

    A table that the method does not make smaller is stored with 8 bits, or in float32.
    """
    names = {option.method for table in tables for option in table.options}
    choices = [priced(tables, [_position(table, name, _SMALLER, EXACT.name) for table in tables]) for name in names]
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.error, choice.num_bytes)):
        if not found or choice.num_bytes < found[-1].num_bytes:
            found.append(choice)
    return found


def realize(tables: Sequence[TableOptions], indices: Sequence[int]) -> dict[str, Compressed]:
    """The compressed tables of a choice, by name, without those that stay as they are."""
    methods = {table.name: table.options[index].method for table, index in zip(tables, indices, strict=True)}
    return {table.name: table.table(methods[table.name]) for table in tables if methods[table.name] != EXACT.name}


def _position(table: TableOptions, *names: str) -> int:
    """The index of the first of these methods that is an option of the table."""
    found = {option.method: index for index, option in enumerate(table.options)}
    return next(found[name] for name in names if name in found)


def _distance(rise: float, wanted: float) -> float:
    return abs(math.log(max(rise, 1e-300) / wanted))
