"""What a run tells before its first step and after its last."""

import math
import time
from collections.abc import Iterator

import jax

from gpt_jax import config as config_lib
from gpt_jax.data import prepare
from gpt_jax.models import gpt, lora
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import console as console_lib
from gpt_jax.training import feed
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import workdir as workdir_lib


def announce(
  program: program_lib.Program,
  prepared: prepare.Prepared,
  text: feed.Text,
  workdir: workdir_lib.Workdir,
) -> None:
  """Prints what will happen: text, model, devices, portions, memory, places."""
  config = program.config
  model, train = config.model, config.train
  axes = ' × '.join(f'{name} {size}' for name, size in program.mesh.shape.items())
  kind = jax.devices()[0].device_kind
  steps = f'{train.batch_size} sequences × {model.block_size} tokens'
  if train.gradient_accumulation > 1:
    steps += f' in {train.gradient_accumulation} parts'
  rows = [
    *(('text', source.summary()) for source in prepared.sources),
    ('tokens', f'{config.data.tokenizer}, {model.vocab_size:,} in the vocabulary'),
    ('train on', ' + '.join(chunks.summary for chunks in text.train.chunks)),
    ('validate on', ' + '.join(chunks.summary for chunks in text.val.chunks)),
    (
      'model',
      f'{gpt.parameter_count(model):,} parameters: {model.n_layer} layers, {model.n_head} '
      f'heads, width {model.n_embd}, context {model.block_size}; {model.dtype}, {model.attention} '
      'attention',
    ),
    *_adapters(model),
    ('devices', f'{jax.device_count()} × {kind}; mesh {axes}'),
    ('a step', f'{program.tokens_per_step:,} tokens ({steps})'),
    ('the run', f'{train.steps:,} steps, {train.steps * program.tokens_per_step:,} tokens'),
    (
      'memory',
      f'{_size(_state_bytes(program))} a device for parameters, gradients and optimizer, '
      'beside activations',
    ),
    ('results in', workdir.path),
  ]
  for name, value in rows:
    print(f'{name:>11}  {value}', flush=True)


def compile_and_tell(program: program_lib.Program) -> program_lib.Program:
  """Compiles, and prints how long it took and how much memory a step takes in all."""
  began = time.monotonic()
  program = program.compile()
  seconds = time.monotonic() - began
  needed = mesh_lib.per_device_bytes(program.state) + program.step_bytes()
  stats = jax.local_devices()[0].memory_stats() or {}
  limit = f' of {_size(stats["bytes_limit"])}' if 'bytes_limit' in stats else ''
  print(f'{"compiled":>11}  in {seconds:.1f} s; a step takes {_size(needed)}{limit} a device')
  return program


def finished(
  console: console_lib.Console, log: metrics_lib.MetricsLog, workdir: workdir_lib.Workdir
) -> None:
  """Prints the result and what to do with it."""
  steps, losses = metrics_lib.column(log.lines, 'val/loss')
  loss, step = min(zip(losses, steps, strict=True), default=(math.nan, 0))
  console.say(f'finished: best val loss {loss:.4f} at step {step}; curves in {workdir.plot}')
  console.say(f'sample it: python -m gpt_jax.sample --model={workdir.path}')


def _adapters(model: config_lib.ModelConfig) -> Iterator[tuple[str, str]]:
  """A row that tells what alone is trained."""
  if model.lora_rank:
    trained, _ = lora.split_trained(gpt.abstract_params(model))
    count, total = sum(leaf.size for leaf in jax.tree.leaves(trained)), gpt.parameter_count(model)
    yield (
      'adapters',
      f'of rank {model.lora_rank}: {count:,} of {total / 1e6:.1f}M parameters are trained',
    )


def _state_bytes(program: program_lib.Program) -> int:
  gradients, _ = lora.split_trained(program.state.params)
  return mesh_lib.per_device_bytes(program.state) + mesh_lib.per_device_bytes(gradients)


def _size(count: float) -> str:
  for unit in ('B', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.0f} {unit}'
    count /= 1024
  return f'{count:.1f} GiB'
