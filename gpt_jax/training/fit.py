"""What to change in a config whose step needs more memory than a device has."""

import bisect
import math
import os
from typing import Any

import jax

from gpt_jax import knobs
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib

# From what costs the least time to what saves the most memory.
_REMAT: tuple[dict[str, Any], ...] = (
  {},
  {'model.remat': True, 'model.remat_keep': 'products'},
  {'model.remat': True, 'model.remat_keep': 'nothing'},
)


def advice(program: program_lib.Program) -> str:
  """Returns what to change; on one process, the smallest change that fits, found by compiling."""
  if jax.process_count() > 1:
    return (
      'raise `train.gradient_accumulation`, set `model.remat=true`, or lower `train.batch_size`'
    )
  print('out of memory: looking for what fits, by compiling', flush=True)
  device = jax.local_devices()[0]
  host = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limit = (device.memory_stats() or {}).get('bytes_limit') or host
  limit = min(limit, needed(program) - 1)  # it didn't fit, whatever it needs
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
  for remat in _REMAT[first:] if model.kind == 'gpt' else _REMAT[:1]:

    def fits(count: int, remat: dict[str, Any] = remat) -> bool:
      changes = remat | {'train.gradient_accumulation': count}
      return needed(program_lib.build(knobs.replace(config, changes), mesh)) <= limit

    if fits(parts[-1]):
      place = bisect.bisect_left(parts, True, hi=len(parts) - 1, key=fits)
      changes = remat | {'train.gradient_accumulation': parts[place]}
      return {key: value for key, value in changes.items() if value != now[key]}
  return None


def needed(program: program_lib.Program) -> float:
  """Returns the bytes of a device that a step takes: state and temporaries."""
  options = mesh_lib.compiler_options(program.tokens.sharding.mesh)
  try:
    compiled = program.train_step.lower(program.state, program.batch).compile(options)
  except jax.errors.JaxRuntimeError:  # some compilers refuse what doesn't fit
    return math.inf
  return mesh_lib.per_device_bytes(program.state) + compiled.memory_analysis().temp_size_in_bytes


def _spell(value: Any) -> str:
  return str(value).lower() if isinstance(value, bool) else str(value)
