"""How the loss falls with the size of a model and the tokens it is trained on.

The law is L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, "Training Compute-Optimal Large
Language Models", §3.3): N parameters, D tokens.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

_RESAMPLES = 100
_NUMBERS = 5  # of a law
_STARTS = (0.2, 0.5, 1.0)  # exponents to start from
_BOUNDS = (0.02, 3.0)


class Size(NamedTuple):
  """A size of the model."""

  width: int
  params: int  # without those of positions
  flops: float  # of training, per token


class Run(NamedTuple):
  """What a model of a size reached."""

  size: Size
  tokens: int
  loss: float


@dataclasses.dataclass(frozen=True)
class Law:
  """The law with its five numbers."""

  E: float
  A: float
  alpha: float
  B: float
  beta: float

  def loss(self, params: Any, tokens: Any) -> Any:
    """Returns the loss, in nats per token, of numbers or of arrays of them."""
    return self.E + self.A * params**-self.alpha + self.B * tokens**-self.beta

  def best(self, sizes: Iterable[Size], flops: float) -> Run:
    """Returns the size of these with the lowest loss after training of `flops` FLOPs."""
    tokens = {size: flops / size.flops for size in sizes}
    best = min(sizes, key=lambda size: self.loss(float(size.params), tokens[size]))
    return Run(best, round(tokens[best]), self.loss(float(best.params), tokens[best]))


class Fit(NamedTuple):
  """The law nearest to some runs, and those of resampled runs, which show how uncertain it is."""

  law: Law
  resampled: list[Law]

  def __str__(self) -> str:
    terms = 'loss = {E:.3f} + {A:.3g} / N^{alpha:.3f} + {B:.3g} / D^{beta:.3f}'
    between = [
      f'{name} {low:.2f} to {high:.2f}'
      for name in ('E', 'alpha', 'beta')
      for low, high in [self.spread(operator.attrgetter(name))]
    ]
    law = terms.format_map(dataclasses.asdict(self.law))
    return f'{law}; N parameters, D tokens; {", ".join(between)} (90 % of resampled fits)'

  def spread(self, value: Callable[[Law], float]) -> tuple[float, float]:
    """Returns what 90 % of the values of the resampled laws lie between."""
    low, high = np.quantile([value(law) for law in self.resampled], (0.05, 0.95))
    return float(low), float(high)


def fit(runs: Sequence[Run]) -> Fit:
  """Fits the law by the squares of relative errors.

  Resampled runs have losses of the law with errors as large as those of the runs, drawn at random.
  They show nothing of how wrong the form of the law may be, and a little too little else: of losses
  made by a law, for a size four times the largest, three of four intervals hold the right one.
  """
  params, tokens, losses = np.array([(r.size.params, r.tokens, r.loss) for r in runs], float).T
  laws = [_nearest(params, tokens, losses, (a, b)) for a in _STARTS for b in _STARTS]
  law = min(laws, key=lambda law: np.square(law.loss(params, tokens) / losses - 1).sum())
  fitted, random = law.loss(params, tokens), np.random.default_rng(0)
  error = (np.square(losses / fitted - 1).sum() / max(1, len(runs) - _NUMBERS)) ** 0.5
  drawn = fitted * (1 + error * random.standard_normal((_RESAMPLES, len(runs))))
  return Fit(law, [_nearest(params, tokens, each, (law.alpha, law.beta)) for each in drawn])


def _nearest(
  params: np.ndarray, tokens: np.ndarray, losses: np.ndarray, start: tuple[float, float]
) -> Law:
  """The law of least squared relative errors; its E, A and B follow from the exponents."""

  def solve(exponents: Any) -> tuple[Any, float]:
    terms = np.stack([params**0, params ** -exponents[0], tokens ** -exponents[1]], axis=1)
    scale = terms.max(0)
    found, error = optimize.nnls(terms / scale / losses[:, None], np.ones_like(losses))
    return found / scale, error

  alpha, beta = optimize.minimize(
    lambda exponents: solve(exponents)[1], start, method='Nelder-Mead', bounds=[_BOUNDS] * 2
  ).x
  (E, A, B), _ = solve((alpha, beta))
  return Law(*map(float, (E, A, alpha, B, beta)))
