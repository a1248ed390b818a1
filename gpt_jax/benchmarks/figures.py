"""Measured figures, a value for each repetition, and the machine they are from."""

import os
import pathlib
import platform
import re
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax

from gpt_jax import config as config_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import overview


class Figure(NamedTuple):
  """One figure; `values` has one for each repetition, or a single one that doesn't vary."""

  name: str
  unit: str
  values: list[float]
  note: str = ''

  @property
  def median(self) -> float:
    return statistics.median(self.values)

  def summary(self) -> dict[str, Any]:
    """Returns all of it, for JSON."""
    least, most = min(self.values), max(self.values)
    return {**self._asdict(), 'median': self.median, 'least': least, 'most': most}


def table(figures: Iterable[Figure]) -> str:
  """Returns a line for each figure: name, median, least – most, note."""

  def short(value: float) -> str:
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'

  def spread(values: list[float]) -> str:
    return f'{short(min(values))} – {short(max(values))}' if len(values) > 1 else ''

  return overview.table(
    [(f.name, f'{short(f.median)} {f.unit}', spread(f.values), f.note) for f in figures]
  )


def machine(mesh: config_lib.MeshConfig) -> dict[str, Any]:
  """Returns what was measured on; initialises JAX's devices."""
  mesh_lib.start(mesh)
  cpus = pathlib.Path('/proc/cpuinfo')
  model = re.search('model name\\s*: (.*)', cpus.read_text()) if cpus.exists() else None
  return {
    'processor': model[1] if model else platform.machine(),
    'cores': os.cpu_count(),
    'devices': f'{jax.device_count()} × {jax.devices()[0].device_kind}',
    'jax': jax.__version__,
    'python': platform.python_version(),
  }
