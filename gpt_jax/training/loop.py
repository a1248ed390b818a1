"""The training loop: steps, metrics, evaluations, checkpoints, and a stop at any moment."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data import loader
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import processes
from gpt_jax.training import input_pipeline, objectives, perf, plot, report
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import run as run_lib
from gpt_jax.training import step as step_lib
from gpt_jax.weights import checkpoints as checkpoints_lib
from gpt_jax.weights import manifest, run_dir, saved_model

_REDRAW = 30.0  # seconds between two pictures, at least


def evaluate(
  program: program_lib.Program,
  params: Any,
  rows: Callable[[np.ndarray], batch_lib.Batch],
  count: int,
  *,
  check: Callable[[], None],
) -> dict[str, Any]:
  """Returns the sums of `objectives.evaluate` over `count` batches of `rows`.

  `rows` are as of `input_pipeline.batches`. `check` is called before each batch; what it raises
  ends the work.
  """
  total: dict[str, Any] = {}
  for batch in input_pipeline.batches(rows, program.tokens, range(count)):
    check()
    # One at a time: many in flight fill a device's memory, and see one_step_at_a_time.
    sums = jax.device_get(program.eval_step(params, batch))
    total = {name: total.get(name, 0) + value.astype('float64') for name, value in sums.items()}
  return total


class Loop:
  """Trains a compiled program on its data, in the folder of its run, until done or stopped."""

  def __init__(
    self,
    program: program_lib.Program,
    data: loader.Data,
    run: run_lib.Run,
    check: Callable[[], None],
  ) -> None:
    """Prepares to train; `check` raises `Stopped` when it is time to."""
    self._program, self._data, self._run, self._check = program, data, run, check
    self._train = program.config.train
    self._identity = run_dir.identity(program.config.model, data.tokenizer)
    self._saved = run.step
    self._since, self._tokens = time.monotonic(), 0  # for the throughput
    self._drawn = -math.inf
    self._peak = perf.peak_flops(jax.devices()[0].device_kind, program.config.model.dtype)
    self._flops = perf.flops_per_token(program.config.model)

  def train(self, pretrained: saved_model.SavedModel | None) -> None:
    """Trains from the newest checkpoint, else from `pretrained`, else from random parameters.

    Raises:
      Stopped: A stop was requested; the state is saved.
      UserError: The run has diverged, or its checkpoint is damaged or of another run.
    """
    train, run, step = self._train, self._run, self._run.step
    keep = train.keep_checkpoints
    with (
      progress.Bar(keep=True) as bar,
      checkpoints_lib.Checkpoints(run.checkpoints, keep=keep, warn=bar.say) as checkpoints,
    ):
      self._checkpoints = checkpoints
      if step is None:
        state = self._program.initial_state(pretrained)
      else:
        folder = run.checkpoints / str(step)
        run.check_identity(manifest.read(folder), self._identity)
        state = self._program.restored_state(folder)
      self._log = metrics_lib.MetricsLog(
        run.metrics,
        resume_step=step,
        tensorboard=run.tensorboard if train.tensorboard else None,
        writes=processes.is_primary(),
      )
      self._console = report.Console(bar, steps=train.steps, start=step or 0)
      self._take_steps(state, step or 0)
      self._console.say(report.result(self._log.lines, run))

  def _take_steps(self, state: step_lib.TrainState, step: int) -> None:
    """Takes the steps from `step` to the last; donates `state`."""
    train, pending = self._train, None
    one_at_a_time = mesh_lib.one_step_at_a_time()
    try:
      # A new run begins with an evaluation; one that was stopped in an evaluation repeats it.
      if self._is_due(step, train.eval_every) and not self._log.has(step, 'val/loss'):
        self._evaluate_and_save(state, step)
      self._since = time.monotonic()
      rows, numbers = self._data.train.train_rows, range(step, train.steps)
      for batch in input_pipeline.batches(rows, self._program.tokens, numbers):
        self._check()
        with jax.transfer_guard('disallow'):
          state, metrics = self._program.train_step(state, batch)
        if one_at_a_time:
          jax.block_until_ready(state)
        step += 1
        # The device works on this step while the host reads the metrics of the one before.
        self._read(pending)
        pending = (step, metrics)
        if self._is_due(step, train.eval_every) or self._is_due(step, train.checkpoint_every):
          self._read(pending)
          pending = None
          self._evaluate_and_save(state, step)
    except errors.Stopped:
      self._read(pending)
      if step != self._saved:
        self._save(state, step, None)
      raise errors.Stopped(
        f'stopped at step {step} of {train.steps}, saved in {self._run.path}; '
        'run the same command again to resume'
      ) from None

  def _is_due(self, step: int, every: int) -> bool:
    return step == self._train.steps or step % every == 0

  def _evaluate_and_save(self, state: step_lib.TrainState, step: int) -> None:
    """Evaluates, saves and draws if it is time to; the metrics of `step` have been read."""
    began = time.monotonic()
    score, best = None, False
    if self._is_due(step, self._train.eval_every):
      score, best = self._evaluate(state, step)
    if step == self._saved or best or step and self._is_due(step, self._train.checkpoint_every):
      self._save(state, step, score)
    is_stale = step == self._train.steps or began - self._drawn > _REDRAW
    if step and score is not None and is_stale and processes.is_primary():
      plot.draw(self._log.lines, self._run.plot, title=self._run.path.name)
      self._drawn = time.monotonic()
    self._since += time.monotonic() - began

  def _save(self, state: step_lib.TrainState, step: int, score: float | None) -> None:
    items = {'params': state.params, 'optimizer': state.opt_state}
    self._checkpoints.save(step, items, score=score, identity=self._identity)
    self._saved = step

  def _evaluate(self, state: step_lib.TrainState, step: int) -> tuple[float, bool]:
    """Returns the score on the fixed validation batches, and whether it is the best."""
    count = self._train.eval_batches
    rows = functools.partial(self._data.val.val_rows, total=count * self._train.batch_size)
    sums = evaluate(self._program, state.params, rows, count, check=self._check)
    line = {f'val/{name}': value for name, value in objectives.measures(sums).items()}
    self._log.write(step, line)
    score = metrics_lib.score(line)
    best = metrics_lib.best(self._log.lines) == (step, score)
    self._console.evaluated(step, line, best=best)
    return score, best

  def _read(self, pending: tuple[int, step_lib.Metrics] | None) -> None:
    """Waits for the metrics of a step, and logs them if it is time to."""
    if pending is None:
      return
    step, device_metrics = pending
    metrics = {key: float(value) for key, value in jax.device_get(device_metrics).items()}
    if not all(map(math.isfinite, metrics.values())):
      problem = f'loss {metrics["loss"]}, gradient norm {metrics["grad_norm"]} at step {step}'
      raise errors.UserError(
        'optimizer.learning_rate',
        f'the run has diverged: {problem}',
        'lower it or raise `optimizer.warmup_steps`, with another `workdir`',
      )
    self._tokens += self._program.tokens.size
    self._console.step(step, metrics['loss'])
    if step == 1 or self._is_due(step, self._train.log_every):
      now = time.monotonic()
      rate = round(self._tokens / max(now - self._since, 1e-9), 1)
      self._since, self._tokens = now, 0
      line = {f'train/{key}': value for key, value in metrics.items()}
      line['perf/tokens_per_second'] = rate
      if self._peak is not None:
        line['perf/mfu'] = round(rate * self._flops / (self._peak * jax.device_count()), 4)
      self._log.write(step, line)
      self._console.logged(step, line)
