"""What to change in a config whose step needs more memory than a device has."""

import bisect
import math
from typing import Any

import jax

from gpt_jax import errors, knobs, oom
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib

# From what costs the least time to what saves the most memory.
_REMAT: tuple[dict[str, Any], ...] = (
  {},
  {'model.remat': True, 'model.remat_keep': 'products'},
  {'model.remat': True, 'model.remat_keep': 'nothing'},
)


def check(program: program_lib.Program) -> None:
  """Raises `UserError` if a step of this compiled program needs more than there is.

  On a CPU, the process would be killed without a word.
  """
  needs, limit = _total(program, program.train_step), oom.device_memory()
  if needs > limit:
    problem = f'a step needs {needs / 1e9:,.1f} GB of a device that has {limit / 1e9:,.1f}'
    raise errors.UserError('out of device memory', problem, advice(program))


def advice(program: program_lib.Program) -> str:
  """Returns what to change; on one process, the smallest change that fits, found by compiling."""
  if jax.process_count() > 1:
    return (
      'raise `train.gradient_accumulation`, set `model.remat=true`, or lower `train.batch_size`'
    )
  print('out of memory: looking for what fits, by compiling', flush=True)
  limit = min(oom.device_memory(), needed(program) - 1)  # it didn't fit, whatever it needs
  if changes := smallest_change(program, limit):
    return 'this fits: ' + ' '.join(f'`{key}={_spell(value)}`' for key, value in changes.items())
  return 'shard the state with `mesh.fsdp`, or take a smaller model or a shorter `model.block_size`'


def smallest_change(program: program_lib.Program, limit: float) -> dict[str, Any] | None:
  """Returns config keys and values with which a step needs at most `limit` bytes of a device.

  More micro-batches cost the least time, recomputing more. None if nothing of it is enough.
  """
  config, mesh = program.config, program.tokens.sharding.mesh
  model, batch = config.model, config.train.batch_size
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  now = {knob.key: knob.value for knob in knobs.knobs(config)}
  first = 0 if not model.remat else 1 if model.remat_keep == 'products' else 2
  counts = range(config.train.gradient_accumulation, batch // devices + 1)
  parts = [count for count in counts if batch % (count * devices) == 0]
  for remat in _REMAT[first:] if model.kind != 'lstm' else _REMAT[:1]:

    def fits(count: int, remat: dict[str, Any] = remat) -> bool:
      changes = remat | {'train.gradient_accumulation': count}
      return needed(program_lib.build(knobs.replace(config, changes), mesh)) <= limit

    if fits(parts[-1]):
      place = bisect.bisect_left(parts, True, hi=len(parts) - 1, key=fits)
      changes = remat | {'train.gradient_accumulation': parts[place]}
      return {key: value for key, value in changes.items() if value != now[key]}
  return None


def needed(program: program_lib.Program) -> float:
  """Returns the bytes of a device that a step of a program takes: state and temporaries."""
  built = program_lib.build(program.config, program.tokens.sharding.mesh)
  lowered = built.train_step.lower(built.state, built.batch)
  try:
    return _total(built, lowered.compile(built.compiler_options()))
  except jax.errors.JaxRuntimeError:  # some compilers refuse what doesn't fit
    return math.inf


def _total(program: program_lib.Program, step: Any) -> float:
  analysis = step.memory_analysis()
  temporary = analysis.temp_size_in_bytes if analysis is not None else 0
  return float(mesh_lib.per_device_bytes(program.state) + temporary)


def _spell(value: Any) -> str:
  return str(value).lower() if isinstance(value, bool) else str(value)
