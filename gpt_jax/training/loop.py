"""A training run: text in, checkpoints and metrics out."""

import contextlib
import dataclasses
import functools
import math
import time

import jax

from gpt_jax import config as config_lib
from gpt_jax import errors, stopping, validation
from gpt_jax.data import tokenizers
from gpt_jax.models import lora
from gpt_jax.parallel import processes
from gpt_jax.training import checkpoints as checkpoints_lib
from gpt_jax.training import console as console_lib
from gpt_jax.training import feed, perf, plot, preflight
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import origin as origin_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib
from gpt_jax.training import workdir as workdir_lib


def train(config: config_lib.Config, workdir: workdir_lib.Workdir) -> None:
  """Trains as `config` says, in `workdir`, from its newest checkpoint if there is one.

  Raises:
    UserError: something that the user can mend; nothing half-written is left.
    Stopped: SIGTERM or SIGINT came; the state is saved.
  """
  with contextlib.ExitStack() as stack:
    stop = stack.enter_context(stopping.StopRequest())
    stack.enter_context(program_lib.out_of_memory_is_the_users())
    workdir.check(config)
    processes.set_up(config.mesh)
    origin = origin_lib.open_origin(config.init_from) if config.init_from else None
    prepared = feed.load(config.data, stop)
    config = resolve(config, prepared.tokenizer)
    workdir.check(config)
    text = feed.cut(config, prepared)
    if origin:
      origin.check(config.model, prepared.tokenizer)
    program = program_lib.build(config)
    preflight.announce(program, prepared, text, workdir)
    program = preflight.compile_and_tell(program)
    stop.check()
    workdir.start(config, prepared.tokenizer, prepared.content_hashes())
    checkpoints = stack.enter_context(
      checkpoints_lib.Checkpoints(workdir.checkpoints, keep=config.train.keep_checkpoints)
    )
    state, step = start_state(program, checkpoints, origin)
    log = metrics_lib.MetricsLog(
      workdir.metrics,
      resume_step=step,
      tensorboard=workdir.tensorboard if config.train.tensorboard else None,
    )
    run = Run(
      program=program,
      text=text,
      workdir=workdir,
      checkpoints=checkpoints,
      stop=stop,
      log=stack.enter_context(log),
      console=stack.enter_context(
        console_lib.Console(steps=config.train.steps, start=step or 0),
      ),
    )
    run.go(state, step)


def resolve(config: config_lib.Config, tokenizer: tokenizers.Tokenizer) -> config_lib.Config:
  """`config` with the vocabulary size known; raises `UserError` if it says another."""
  size = tokenizer.vocab_size
  if config.model.vocab_size not in (0, size):
    validation.fail(
      [
        f'model.vocab_size: {config.model.vocab_size} must be 0 or {size}, the entries of the '
        f'{tokenizer.kind} tokenizer (model.pad_vocab_to rounds the embedding up)'
      ]
    )
  return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def start_state(
  program: program_lib.Program,
  checkpoints: checkpoints_lib.Checkpoints,
  origin: origin_lib.Origin | None,
) -> tuple[step_lib.TrainState, int | None]:
  """The newest saved state and its step, or a new state, from `origin` if it is given, and None."""
  steps = checkpoints.steps()
  if steps:
    return checkpoints.restore(steps[-1], program.state), steps[-1]
  state = program.init()
  if origin:
    adapters = lora.split(state.params)[0]
    state = state._replace(params=None)  # the random ones, before others take memory
    base = origin.params(lora.split(program.state.params)[1])
    state = state._replace(params=lora.join(adapters, base))
  return state, None


class Run:
  """The loop, once everything stands."""

  def __init__(
    self,
    *,
    program: program_lib.Program,
    text: feed.Text,
    workdir: workdir_lib.Workdir,
    checkpoints: checkpoints_lib.Checkpoints,
    stop: stopping.StopRequest,
    log: metrics_lib.MetricsLog,
    console: console_lib.Console,
  ):
    self._program = program
    self._text = text
    self._workdir = workdir
    self._checkpoints = checkpoints
    self._stop = stop
    self._log = log
    self._console = console
    self._cfg = program.config.train
    self._saved: int | None = None
    self._throughput = perf.Throughput()
    self._peak = perf.peak_flops(jax.devices()[0].device_kind, program.config.model.dtype)
    self._flops = perf.flops_per_token(program.config.model)

  def go(self, state: step_lib.TrainState, start: int | None) -> None:
    """Takes the steps from `start` (None: none is taken yet) to the last."""
    step = start or 0
    self._saved = start
    if start is None:
      self._evaluate(state, 0)
    self._throughput.read()  # from here on
    pending, one_at_a_time = None, processes.one_step_at_a_time()
    make = functools.partial(self._text.train_batch, self._program)
    for batch in feed.ahead(make, range(step, self._cfg.steps)):
      if self._stop.requested:
        break
      with jax.transfer_guard('disallow'):
        state, metrics = self._program.train_step(state, batch)
      if one_at_a_time:
        jax.block_until_ready(state)
      step += 1
      # The device works on this step while the host reads the metrics of the one before.
      self._read(pending)
      pending = (step, metrics)
      if self._at_boundary(step):
        self._read(pending)
        pending = None
        self._boundary(state, step)
    if step < self._cfg.steps:
      self._read(pending)
      if step != self._saved:
        self._checkpoints.save(state, step=step, val_loss=None)
      raise errors.Stopped(
        f'stopped at step {step} of {self._cfg.steps}, saved in {self._workdir.path}; '
        'run the same command again to go on'
      )
    preflight.finished(self._console, self._log, self._workdir)

  def _at_boundary(self, step: int) -> bool:
    cfg = self._cfg
    return step == cfg.steps or step % cfg.eval_every == 0 or step % cfg.checkpoint_every == 0

  def _boundary(self, state: step_lib.TrainState, step: int) -> None:
    """Evaluates, saves and draws, where it is time to; `step`'s metrics have been read."""
    began = time.monotonic()
    cfg, last = self._cfg, step == self._cfg.steps
    val_loss, best = None, False
    if last or step % cfg.eval_every == 0:
      previous = self._log.best_val_loss()
      val_loss = self._evaluate(state, step)
      best = val_loss < previous
    if last or best or step % cfg.checkpoint_every == 0:
      self._checkpoints.save(state, step=step, val_loss=val_loss)
      self._saved = step
    if val_loss is not None:
      plot.draw(self._log.lines, self._workdir.plot, title=self._workdir.path.name)
    self._throughput.exclude(time.monotonic() - began)

  def _read(self, pending: tuple[int, step_lib.Metrics] | None) -> None:
    """Waits for the metrics of a step, and logs them if it is time to."""
    if pending is None:
      return
    step, device_metrics = pending
    metrics = {key: float(value) for key, value in jax.device_get(device_metrics).items()}
    if not all(map(math.isfinite, metrics.values())):
      raise errors.UserError(
        f'step {step}: loss {metrics["loss"]}, gradient norm {metrics["grad_norm"]}: the run has '
        'diverged. Lower --config.optimizer.learning_rate or lengthen '
        '--config.optimizer.warmup_steps, with a new --workdir.'
      )
    self._throughput.add(self._program.tokens_per_step)
    self._console.step(step, metrics['loss'])
    if step == 1 or step == self._cfg.steps or step % self._cfg.log_every == 0:
      line = {f'train/{key}': value for key, value in metrics.items()}
      line['perf/tokens_per_second'] = rate = round(self._throughput.read(), 1)
      if self._peak is not None:
        line['perf/mfu'] = round(rate * self._flops / (self._peak * jax.device_count()), 4)
      self._log.write(step, line)
      self._console.logged(step, line)

  def _evaluate(self, state: step_lib.TrainState, step: int) -> float:
    """The mean loss over the fixed validation batches, logged."""
    best = self._log.best_val_loss()
    losses, targets = 0.0, 0
    make = functools.partial(self._text.val_batch, self._program)
    for batch in feed.ahead(make, range(self._cfg.eval_batches)):
      device_sums = self._program.eval_step(state.params, batch)
      # One at a time: many in flight fill a device's memory, and see one_step_at_a_time.
      batch_loss, batch_targets = jax.device_get(device_sums)
      losses, targets = losses + float(batch_loss), targets + int(batch_targets)
    loss = losses / targets
    line = {'val/loss': loss, 'val/perplexity': math.exp(min(loss, 700.0))}
    self._log.write(step, line)
    self._console.evaluated(step, line, step > 0 and loss < best)
    return loss
