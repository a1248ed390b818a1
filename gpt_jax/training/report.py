"""What a run prints: a summary before its first step, its progress, and the result."""

import datetime
import math
import pathlib
import time
from collections.abc import Mapping

import jax

from gpt_jax import errors, knobs, models, progress
from gpt_jax.data import loader
from gpt_jax.models import lora
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import program as program_lib
from gpt_jax.weights import run_dir


def summarize(program: program_lib.Program, data: loader.Data, run: run_dir.RunDir) -> None:
  """Prints what will be trained, on which text, on which devices, and where the results go."""
  model, train = program.config.model, program.config.train
  total, tokens = models.parameter_count(model), program.tokens.size
  rows = f'{train.batch_size} sequences × {program.tokens.shape[-1]}'
  mesh = program.tokens.sharding.mesh
  axes = ' × '.join(f'{name} {size}' for name, size in mesh.shape.items())
  for source in data.sources:
    _row('text', source.summary())
  _row('tokenizer', f'{data.tokenizer.kind}, {model.vocab_size:,} tokens')
  _row('train on', data.train.summary)
  _row('validate on', data.val.summary)
  inside = f'{model.n_head} heads, width {model.n_embd}, context {model.block_size}'
  how = f'{model.dtype}, {model.attention} attention'
  if model.kind == 'lstm':
    inside, how = f'embedding {model.n_embd}, LSTM of width {model.lstm_width}', model.dtype
  kind = '' if model.kind in ('gpt', 'lstm') else f', {model.kind.replace("_", "–")}'
  _row('model', f'{total:,} parameters{kind}: {model.n_layer} layers, {inside}; {how}')
  if model.classes:
    _row('classes', f'{model.classes.replace(",", ", ")}; {model.pooling} of the hidden states')
  if model.lora_rank:
    adapters = sum(x.size for x in jax.tree.leaves(lora.split(program.state.params)[0]))
    _row('adapters', f'rank {model.lora_rank}: {adapters:,} of {total:,} parameters are trained')
  _row('devices', f'{jax.device_count()} × {jax.devices()[0].device_kind}; mesh {axes}')
  _row(
    'steps',
    f'{train.steps:,} of {tokens:,} tokens: {rows}'
    + (f' in {parts} micro-batches' if (parts := train.gradient_accumulation) > 1 else ''),
  )
  _row('results in', str(run.path))


def compile_program(
  program: program_lib.Program, *, kernels: pathlib.Path | None = None, attention: str = 'auto'
) -> program_lib.Program:
  """Compiles both steps; prints the time it took and the memory that training takes.

  `kernels` as of `Program.compile`. With `attention` auto, XLA's is taken if cuDNN's was chosen and
  doesn't work here. Raises `UserError` if another `attention` doesn't.
  """
  began = time.monotonic()
  try:
    program = _compiled(program, kernels)
  except (RuntimeError, ValueError, NotImplementedError) as e:  # as the library is missing or old
    chosen, is_oom = program.config.model.attention, 'RESOURCE_EXHAUSTED' in str(e)
    if chosen == 'xla' or (chosen != 'cudnn' if attention == 'auto' else is_oom):
      raise
    reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
    if attention != 'auto':
      problem = f'{attention} does not work here: {reason}'
      raise errors.UserError('model.attention', problem, 'use auto') from e
    _row('attention', f"by XLA, slower, since cuDNN's doesn't work here: {reason}")
    other = knobs.replace(program.config, {'model.attention': 'xla'})
    program = _compiled(program_lib.build(other, program.tokens.sharding.mesh), kernels)
  gradients, _ = models.split_trained(program.config.model, program.state.params)
  state = mesh_lib.per_device_bytes(program.state)
  analysis = program.train_step.memory_analysis()
  peak = state + (analysis.temp_size_in_bytes if analysis is not None else 0)
  limit = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit')
  _row(
    'memory',
    f'{progress.short(state + mesh_lib.per_device_bytes(gradients))}B per device for parameters, '
    f'gradients and optimizer; {progress.short(peak)}B in a step'
    + (f' of {progress.short(limit)}B' if limit else ''),
  )
  _row('compiled', f'in {time.monotonic() - began:.1f} s')
  return program


def _compiled(program: program_lib.Program, kernels: pathlib.Path | None) -> program_lib.Program:
  with progress.doing('compiling'):
    return program.compile(kernels)


def result(lines: list[metrics_lib.Line], run: run_dir.RunDir) -> str:
  """Returns the result of a finished run, and what to do with it."""
  if not (found := metrics_lib.best(lines)):
    return f'finished, but no validation loss is finite; curves in {run.plot}'
  step, score = found
  task = run.read_config().task
  best, use = f'val loss {score:.4f}', 'inspect' if task == 'masked' else 'sample'
  if any('val/error' in line for line in lines):
    best, use = f'val accuracy {1 - score:.4f}', 'classify'
  options = {'instruct': ' --chat', 'spans': " --prompt='… [MASK] …'"}.get(task, '')
  return (
    f'finished: best {best} at step {step}; curves in {run.plot}\n'
    f'{use} it: python -m gpt_jax.{use} --model={run.path}{options}'
  )


class Console:
  """Reports the progress of a run: a bar on a terminal, lines elsewhere."""

  def __init__(self, bar: progress.Bar, *, steps: int, start: int) -> None:
    self.say = bar.say
    self._bar, self._steps, self._start = bar, steps, start
    self._since, self._rate, self._note = time.monotonic(), 0.0, ''

  def evaluating(self, step: int) -> None:
    """Reports that an evaluation begins."""
    self._bar.show('training', step, self._steps, 'evaluating')

  def step(self, step: int, loss: float) -> None:
    """Reports a step."""
    self._note = f'{progress.short(self._rate)} tokens/s, loss {loss:.3f}'
    self._bar.show('training', step, self._steps, self._note)

  def skipped(self, step: int, metrics: Mapping[str, float]) -> None:
    """Reports a step that changed nothing."""
    found = f'loss {metrics["loss"]:.4g}, gradient norm {metrics["grad_norm"]:.4g}'
    self.say(f'warning: step {step} changes nothing: {found}')

  def logged(self, step: int, line: metrics_lib.Line) -> None:
    """Reports a training line of metrics.jsonl."""
    self._rate = line['perf/tokens_per_second']
    if not self._bar.visible:
      seconds = (time.monotonic() - self._since) / (step - self._start) * (self._steps - step)
      self.say(
        f'step {step}/{self._steps}  loss {line["train/loss"]:.4f}  '
        f'grad {line["train/grad_norm"]:.2f}  lr {line["train/learning_rate"]:.2e}  '
        f'{self._rate:,.0f} tokens/s  {datetime.timedelta(seconds=round(seconds))} left'
      )

  def evaluated(self, step: int, line: metrics_lib.Line, *, best: bool) -> None:
    """Reports a validation line of metrics.jsonl."""
    values = [f'val loss {line["val/loss"]:.4f}']
    for name in ('perplexity', 'accuracy', 'unigram', 'f1', 'exact_match'):
      if f'val/{name}' in line:
        values.append(f'{name} {line[f"val/{name}"]:.{2 if name == "perplexity" else 4}f}')
    if not math.isfinite(metrics_lib.score(line)):
      values.append('not finite: never the best')
    self.say(f'step {step}/{self._steps}  {"  ".join(values)}{"  best" if best else ""}')
    self._bar.show('training', step, self._steps, self._note)


def _row(name: str, value: str) -> None:
  print(f'{name:>11}  {value}', flush=True)
