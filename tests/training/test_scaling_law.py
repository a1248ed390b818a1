"""A fit finds the law that losses follow, and knows how certain it is."""

import dataclasses

import numpy as np
import pytest

from gpt_jax.training import scaling_law

LAW = scaling_law.Law(E=1.2, A=8.0, alpha=0.35, B=40.0, beta=0.4)
SIZES = [scaling_law.Size(w, 48 * w * w, 6.5 * 48 * w * w) for w in (16, 24, 32, 48, 64)]
LARGER = scaling_law.Size(128, 48 * 128 * 128, 6.5 * 48 * 128 * 128)


def _fit(noise: float, seed: int = 0) -> scaling_law.Fit:
  random = np.random.default_rng(seed)
  return scaling_law.fit(
    [
      scaling_law.Run(size, tokens, LAW.loss(size.params, tokens) * (1 + noise * random.normal()))
      for size in SIZES
      for tokens in (250_000, 500_000, 1_000_000, 2_000_000)
    ]
  )


def test_the_law_of_losses_without_noise_is_found() -> None:
  found, wanted = (dataclasses.asdict(law) for law in (_fit(0).law, LAW))
  assert found == pytest.approx(wanted, rel=1e-2)


def test_what_a_size_four_times_larger_reaches_lies_in_the_interval_and_grows_with_noise() -> None:
  wanted, inside, widths = LAW.loss(LARGER.params, 2_000_000), 0, []
  for noise in (0.002, 0.01):
    for seed in range(4):
      low, high = _fit(noise, seed).spread(lambda law: law.loss(LARGER.params, 2_000_000))
      inside += low <= wanted <= high
      widths.append(high - low)
  assert inside >= 4  # of 8; 6 are expected
  assert np.mean(widths[4:]) > 3 * np.mean(widths[:4])


def test_the_best_size_spends_the_budget_and_no_other_is_better() -> None:
  sizes = [scaling_law.Size(w, 48 * w * w, 300.0 * w * w) for w in range(4, 400, 4)]
  chosen = []
  for flops in (1e11, 1e12, 1e13):
    best = LAW.best(sizes, flops)
    assert best.tokens * best.size.flops == pytest.approx(flops, rel=1e-4)
    losses = [LAW.loss(float(size.params), flops / size.flops) for size in sizes]
    assert best.loss == min(losses) and sizes[0].width < best.size.width < sizes[-1].width
    chosen.append(best.size.params)
  # In closed form both grow as powers of the budget (Hoffmann et al. 2022, equation 4).
  power = LAW.beta / (LAW.alpha + LAW.beta)
  assert np.polyfit(np.log([1e11, 1e12, 1e13]), np.log(chosen), 1)[0] == pytest.approx(
    power, abs=0.05
  )
