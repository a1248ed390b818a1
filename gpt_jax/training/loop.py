"""The training loop: steps, metrics, evaluations, checkpoints, and a stop at any moment."""

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data import loader
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import processes
from gpt_jax.training import input_pipeline, objectives, perf, plot, report, trackers
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import recovery as recovery_lib
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
    self._recovery = recovery_lib.Recovery()
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
    run, resume_step = self._run, self._run.step
    folder = None if resume_step is None else run.checkpoints / str(resume_step)
    if folder:
      run.check_identity(manifest.read(folder), self._identity)
      self._recovery = recovery_lib.Recovery.read(folder)
    with progress.Bar(keep=True) as bar:
      while True:
        try:
          self._train_from(folder, resume_step, pretrained, bar)
          break
        except recovery_lib.GoBack as e:
          (trouble,) = e.args
        # Not in the handler, whose exception keeps the state: two would need twice the memory.
        folder = self._go_back(trouble, bar)
        resume_step = int(folder.name) if folder else 0
      bar.say(report.result(self._log.lines, run))

  def _train_from(
    self,
    folder: pathlib.Path | None,
    resume_step: int | None,
    pretrained: saved_model.SavedModel | None,
    bar: progress.Bar,
  ) -> None:
    """Trains from the checkpoint in `folder`, if not None; keeps metrics up to `resume_step`."""
    train, run = self._train, self._run
    keep, self._saved = train.keep_checkpoints, int(folder.name) if folder else None
    is_primary = processes.is_primary()
    tracked = trackers.opened(self._program.config, run, resume_step) if is_primary else None
    with (
      tracked or contextlib.nullcontext([]) as writers,
      checkpoints_lib.Checkpoints(run.checkpoints, keep=keep, warn=bar.say) as checkpoints,
    ):
      self._checkpoints = checkpoints
      with progress.doing(f'reading {folder}' if folder else 'initializing'):
        if folder:
          state = self._program.restored_state(folder)
        else:
          source = self._program.config.init_from
          state = self._program.initial_state(
            saved_model.open_model(source) if source and pretrained is None else pretrained
          )
      self._log = metrics_lib.MetricsLog(
        run.metrics,
        resume_step=resume_step,
        writers=writers,
        writes=is_primary,
      )
      step = resume_step or 0
      self._console = report.Console(bar, steps=train.steps, start=step)
      self._take_steps(state, step)

  def _go_back(self, trouble: recovery_lib.Trouble, bar: progress.Bar) -> pathlib.Path | None:
    """Returns the checkpoint to go back to, None for the initial state; removes newer ones."""
    checkpoints, found = self._run.checkpoints, None
    saved = manifest.steps(checkpoints)
    if processes.is_primary():
      wanted = itertools.takewhile(saved.__contains__, self._targets(saved, trouble.good))
      intact, damaged = manifest.first_intact(checkpoints, wanted)
      self._run.set_aside(damaged, warn=bar.say)
      found = intact.step if intact else None
    # Of process 0: another might not see yet what that has just removed.
    found = processes.gather(found)[0]
    step, folder = found or 0, None if found is None else checkpoints / str(found)
    recovery = self._recovery.after(trouble, folder)
    if recovery is None:
      raise self._recovery.failure(trouble, self._data, self._train.batch_size)
    bar.say(f'warning: {trouble.problem}; back to step {step}, and on with later batches')
    processes.gather(None)  # until all have read it
    if processes.is_primary():
      for newer in saved:
        if newer > step:
          checkpoints_lib.remove(checkpoints / str(newer))
    self._recovery = recovery
    return folder

  def _targets(self, saved: Sequence[int], good: int) -> list[int]:
    return recovery_lib.targets(self._log.lines, saved, good, self._train.checkpoint_every)

  def _take_steps(self, state: step_lib.TrainState, step: int) -> None:
    """Takes the steps from `step` to the last; donates `state`."""
    train, pending = self._train, None
    one_at_a_time = mesh_lib.one_step_at_a_time()
    try:
      # A new run begins with an evaluation; one that was stopped in an evaluation repeats it.
      is_next = self._is_due(step, train.eval_every) and not self._log.has(step, 'val/loss')
      if is_next and self._evaluate_and_save(state, step):
        return
      self._since, self._tokens = time.monotonic(), 0
      offset = self._recovery.offset
      rows, numbers = self._data.train.train_rows, range(step + offset, train.steps + offset)
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
          if self._evaluate_and_save(state, step):
            return
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

  def _evaluate_and_save(self, state: step_lib.TrainState, step: int) -> bool:
    """Evaluates, saves and draws if it is time to; the metrics of `step` have been read.

    Returns whether the run is at its end.
    """
    began = time.monotonic()
    score, best = None, False
    if self._is_due(step, self._train.eval_every):
      score, best = self._evaluate(state, step)
    is_end = metrics_lib.is_finished(self._log.lines, step, self._train)
    is_due = is_end or (step and self._is_due(step, self._train.checkpoint_every))
    if self._recovery.in_a_row and not is_end:
      is_due = False  # nothing has changed, and an earlier one may be what to go back to
    if step == self._saved or best or is_due:
      self._save(state, step, score)
    is_stale = is_end or began - self._drawn > _REDRAW
    if step and score is not None and is_stale and processes.is_primary():
      try:
        plot.draw(self._log.lines, self._run.plot, title=self._run.path.name)
      except OSError as e:  # no reason to end a run
        self._console.say(f'warning: {self._run.plot} cannot be written ({e.strerror})')
      self._drawn = time.monotonic()
    self._since += time.monotonic() - began
    return is_end

  def _save(self, state: step_lib.TrainState, step: int, score: float | None) -> None:
    state = step_lib.swap_average(self._program.config.model, state)
    items = {'params': state.params, 'optimizer': state.opt_state}
    self._checkpoints.wait()  # the one before may be what to go back to
    back, *_ = self._targets([*self._checkpoints.steps, step], step - self._recovery.in_a_row)
    self._checkpoints.save(
      step,
      items,
      score=score,
      identity=self._identity,
      recovery=dataclasses.asdict(self._recovery),
      also_keep=back,
    )
    self._saved = step

  def _evaluate(self, state: step_lib.TrainState, step: int) -> tuple[float | None, bool]:
    """Returns the score on the fixed validation batches, if finite, and whether it is the best."""
    self._console.evaluating(step)
    count = self._train.eval_batches
    rows = functools.partial(self._data.val.val_rows, total=count * self._train.batch_size)
    params = step_lib.swap_average(self._program.config.model, state).params
    sums = evaluate(self._program, params, rows, count, check=self._check)
    line = {f'val/{name}': value for name, value in objectives.measures(sums).items()}
    self._log.write(step, line)
    score = metrics_lib.score(line)
    best = metrics_lib.best(self._log.lines) == (step, score)
    self._console.evaluated(step, line, best=best)
    return score if math.isfinite(score) else None, best

  def _read(self, pending: tuple[int, step_lib.Metrics] | None) -> None:
    """Waits for the metrics of a step, and logs them if it is time to; may raise `GoBack`."""
    if pending is None:
      return
    step, device_metrics = pending
    metrics = {key: float(value) for key, value in jax.device_get(device_metrics).items()}
    trouble = self._recovery.see(step, metrics, self._train)
    self._tokens += self._program.tokens.size
    self._console.step(step, metrics['loss'])
    if metrics['skipped']:
      self._console.skipped(step, metrics)
    if step == 1 or self._is_due(step, self._train.log_every):
      now = time.monotonic()
      rate = round(self._tokens / max(now - self._since, 1e-9), 1)
      self._since, self._tokens = now, 0
      line = {f'train/{key}': value for key, value in metrics.items()}
      line['train/skipped'] = self._recovery.skipped
      line['perf/tokens_per_second'] = rate
      if self._peak is not None:
        line['perf/mfu'] = round(rate * self._flops / (self._peak * jax.device_count()), 4)
      self._log.write(step, line)
      self._console.logged(step, line)
    if trouble:
      raise recovery_lib.GoBack(trouble)
