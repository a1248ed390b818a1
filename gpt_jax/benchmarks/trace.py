"""Profiles steps, and says which part of the model their time goes to."""

import collections
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from gpt_jax.benchmarks import figures

# Part -> what is in the scope of its operations; the first that fits.
_PARTS = {
  'optimizer': '/optimizer/',
  'attention': '/attn/',
  'mlp': '/mlp/',
  'layer norms': '/ln_',
  'embedding': '/w[tp]e/',
  'output and loss': '[.]loss',
  'lstm': '/cell/',
}


def measure(
  folder: str, program: str, take_steps: Callable[[], object], *, steps: int
) -> list[figures.Figure]:
  """Profiles the `steps` that `take_steps` takes, and returns the time of each part in one of them.

  When several operations run at once, each gets its share of the time, so that all parts, and
  `nothing` while none runs, add up to a step.

  Args:
    folder: Gets the profile, for XProf and Perfetto.
    program: The compiled program as text: it has the scope that each operation comes from (a fusion
      that of its last one).
    take_steps: What to profile.
    steps: How many steps these are.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0  # its events are many, and slow the host
  with jax.profiler.trace(folder, profiler_options=options):
    take_steps()
  newest = max(pathlib.Path(folder).rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
  parts = {}
  for line in program.splitlines():
    operation = re.match(r'\s*(?:ROOT )?%?([\w.-]+) = ', line)
    # What a loop or a call takes is the time of the operations in it.
    if operation and not re.search(r' (?:while|call|conditional)\(', line):
      parts[operation[1]] = _part(line)
  spent = _shares(jax.profiler.ProfileData.from_file(str(newest)), parts)
  total = spent.total()
  return [
    figures.Figure(part, 'ms', [time / steps / 1e6], f'{time / total:.1%} of a traced step')
    for part, time in spent.most_common()
  ]


def _part(line: str) -> str:
  """Returns the part of the model that an operation, a line of the program, belongs to."""
  if re.search(r' (?:all-|reduce-scatter|collective-)[\w-]*\(', line):
    return 'exchange of devices'
  found = re.search('op_name="([^"]*)"', line)
  scope = found[1] if found else ''
  part = next((name for name, pattern in _PARTS.items() if re.search(pattern, scope)), 'other')
  if 'jvp(' not in scope:
    return part
  return f'{part}, {"backward" if "transpose(" in scope else "forward"}'


def _shares(profile: Any, parts: dict[str, str]) -> collections.Counter[str]:
  """Divides the nanoseconds from the first operation's start to the last one's end among parts."""
  begun, ends = [], {}
  planes = list(profile.planes)
  for plane in [p for p in planes if p.name.startswith('/device:')] or planes:
    for event in (event for line in plane.lines for event in line.events):
      stats = dict(event.stats)
      if stats.get('hlo_op') in parts:
        begun.append((event, parts[stats['hlo_op']], stats.get('_p')))
      elif event.name.startswith('end: '):
        # On a CPU, other threads may go on with an operation; this event says that all are done.
        ends[stats.get('_c')] = event.end_ns
  changes = []
  for event, part, key in begun:
    changes.append((event.start_ns, 1, part))
    changes.append((max(event.end_ns, ends.get(key, 0)), -1, part))
  changes.sort()
  spent: collections.Counter[str] = collections.Counter()
  running: collections.Counter[str] = collections.Counter()
  for (time, change, part), (until, *_) in zip(changes, changes[1:], strict=False):
    running[part] += change
    active = +running or collections.Counter({'nothing': 1})
    for each, count in active.items():
      spent[each] += (until - time) * count / active.total()
  return spent
