"""The map from a model's probabilities to calibrated ones: one temperature, and one bias for each choice.

This is bias-corrected temperature scaling (Alexandari et al. 2020, arXiv:1901.06852): temperature scaling (Guo et al.
2017, arXiv:1706.04599) with the biases of Platt's sigmoid. Penalties pull it toward no map.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, log, sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

from cerebrum_cli.core.frozen import frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 1e-6  # probability, as results have six decimals
FOLDS = 5
PENALTIES = (10.0, 1.0)  # times the distance from no map; a row of two equally likely choices weighs up to 0.25
STEPS = 50
CONVERGED = 1e-9  # relative change of the loss

Matrix = Any  # an array of float64: rows by choices


@frozen
class ScoreMap:
    """Log probabilities are multiplied by `weight`, the inverse temperature, above 0; then biases are added."""

    weight: float
    biases: tuple[float, ...]

    @classmethod
    def none(cls, choices: int) -> ScoreMap:
        return cls(1.0, (0.0,) * choices)

    def apply(self, probabilities: Sequence[float]) -> tuple[float, ...]:
        """Calibrated probabilities of the choices, which add up to 1."""
        pairs = zip(probabilities, self.biases, strict=True)
        logits = [self.weight * log(max(LEAST, probability)) + bias for probability, bias in pairs]
        highest = max(logits)
        shares = [exp(logit - highest) for logit in logits]
        total = fsum(shares)
        return tuple(share / total for share in shares)


class _Fit(NamedTuple):
    """A weight, biases, and the penalized loss with them."""

    weight: float
    biases: NDArray[Any]
    loss: float


def fit_map(probabilities: Sequence[Sequence[float]], labels: Sequence[int], choices: int) -> ScoreMap:
    """The map that makes the labels of rows likeliest; none unless it helps on rows that did not fit it.

    From no map on, a weaker penalty is chosen as long as it lowers the mean log loss in a cross-validation by more than
    one standard error. One row is added to those: where few rows are all right, a map would grow too sure, so the row
    that would lose most by the map if its second likeliest choice were right counts as such.
    """
    import numpy

    n = len(labels)
    if n < FOLDS:
        return ScoreMap.none(choices)
    scores = numpy.log(numpy.maximum(numpy.array(probabilities, float), LEAST))
    rights = numpy.array(labels, int)
    losses = _losses(scores, rights, 1.0, numpy.zeros(choices))
    chosen = _Fit(1.0, numpy.zeros(choices), 0.0)
    for penalty in PENALTIES:
        mapped = _cross_validated(scores, rights, penalty)
        fit = _fit(scores, rights, penalty)
        gains = numpy.append(losses - mapped, -_most_lost(scores, chosen, fit))
        if gains.mean() <= gains.std(ddof=1) / sqrt(n + 1):
            break
        chosen, losses = fit, mapped
    return ScoreMap(float(chosen.weight), tuple(float(bias) for bias in chosen.biases))


def _most_lost(scores: Matrix, before: _Fit, after: _Fit) -> float:
    """How much more a row can lose by a map than by the one before if its second likeliest choice is right."""
    import numpy

    second = numpy.argsort(after.weight * scores + after.biases, axis=1)[:, -2]
    lost = _losses(scores, second, after.weight, after.biases) - _losses(scores, second, before.weight, before.biases)
    return max(0.0, float(lost.max()))


def _cross_validated(scores: Matrix, labels: Matrix, penalty: float) -> Matrix:
    """Log losses of rows, each with the map that the other folds fitted."""
    import numpy

    losses = numpy.empty(len(labels))
    folds = numpy.arange(len(labels)) % FOLDS
    for fold in range(FOLDS):
        held = folds == fold
        fit = _fit(scores[~held], labels[~held], penalty)
        losses[held] = _losses(scores[held], labels[held], fit.weight, fit.biases)
    return losses


def _losses(scores: Matrix, labels: Matrix, weight: float, biases: Matrix) -> Matrix:
    import numpy

    logits = weight * scores + biases
    highest = logits.max(axis=1)
    totals = numpy.exp(logits - highest[:, None]).sum(axis=1)
    return highest + numpy.log(totals) - logits[numpy.arange(len(labels)), labels]


def _fit(scores: Matrix, labels: Matrix, penalty: float) -> _Fit:
    """Minimize the log loss plus the penalty, which are convex together, by Newton's method with shorter steps."""
    import numpy

    fit = _evaluate(scores, labels, penalty, 1.0, numpy.zeros(scores.shape[1]))
    for _ in range(STEPS):
        step = _newton_step(scores, labels, penalty, fit)
        length = 1.0
        while True:
            weight, biases = fit.weight - length * step[0], fit.biases - length * step[1:]
            if weight > 0:
                better = _evaluate(scores, labels, penalty, weight, biases)
                if better.loss <= fit.loss:
                    break
            length /= 2
            if length < CONVERGED:
                return fit
        if fit.loss - better.loss < CONVERGED * (1 + abs(fit.loss)):
            return better
        fit = better
    return fit


def _evaluate(scores: Matrix, labels: Matrix, penalty: float, weight: float, biases: Matrix) -> _Fit:
    """The penalty is `weight - 1 - log(weight)`, 0 at 1 and infinite at 0, and half the squares of the biases."""
    distance = weight - 1 - log(weight) + float(biases @ biases) / 2
    return _Fit(weight, biases, float(_losses(scores, labels, weight, biases).sum()) + penalty * distance)


def _newton_step(scores: Matrix, labels: Matrix, penalty: float, fit: _Fit) -> Matrix:
    """The gradient of the penalized loss, divided by its curvature: of the weight, then of the biases."""
    import numpy

    logits = fit.weight * scores + fit.biases
    shares = numpy.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    surplus = shares.copy()
    surplus[numpy.arange(len(labels)), labels] -= 1
    means = (shares * scores).sum(axis=1, keepdims=True)
    deviations = shares * (scores - means)
    size = scores.shape[1] + 1
    curvature = numpy.empty((size, size))
    curvature[0, 0] = (deviations * scores).sum() + penalty / fit.weight**2
    curvature[0, 1:] = curvature[1:, 0] = deviations.sum(axis=0)
    curvature[1:, 1:] = numpy.diag(shares.sum(axis=0) + penalty) - shares.T @ shares
    slope = (surplus * scores).sum() + penalty * (1 - 1 / fit.weight)
    gradient = numpy.concatenate([[slope], surplus.sum(axis=0) + penalty * fit.biases])
    return numpy.linalg.solve(curvature, gradient)
