"""Checkpoints of a run: saved asynchronously, the newest few and the best one kept.

The only module that imports Orbax. A checkpoint `checkpoints/<step>/` has two items, so that a
model can be loaded without its optimizer: `params`, and `optimizer` (Adam's moments and counts).
"""

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gpt_jax import errors
from gpt_jax.training import step as step_lib

_VAL_LOSS = 'val/loss'


class Checkpoints:
  """The checkpoints of one run. A context manager: leaving it waits for saves that are under way.

  An error of an asynchronous save is raised by the next save, or on leaving.
  """

  def __init__(self, directory: str | os.PathLike[str], *, keep: int, read_only: bool = False):
    """Opens `directory`; it is made unless `read_only`. Keeps the `keep` newest and the best."""
    best = policies.BestN(
      get_metric_fn=lambda metrics: metrics[_VAL_LOSS],
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    self._directory = pathlib.Path(directory).absolute()
    with _without_warnings() if read_only else contextlib.nullcontext():
      options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        # Without it Orbax doesn't write the metrics, and the best one is forgotten by a resume.
        best_fn=lambda metrics: metrics[_VAL_LOSS],
        best_mode='min',
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
      )
      self._manager = ocp.CheckpointManager(self._directory, options=options)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self._manager.close()

  def steps(self) -> list[int]:
    """The steps that were whole on disk when this was opened, and those saved since, sorted."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The kept step with the lowest validation loss; None if none was measured."""
    losses = {step: (self._manager.metrics(step) or {}).get(_VAL_LOSS) for step in self.steps()}
    measured = {step: loss for step, loss in losses.items() if loss is not None}
    return min(measured, key=lambda step: measured[step]) if measured else None

  def save(self, state: step_lib.TrainState, *, step: int, val_loss: float | None) -> None:
    """Starts to save `state`, whose `step` it is; copies it off the device before it returns."""
    args = ocp.args.Composite(
      params=ocp.args.StandardSave(state.params),
      optimizer=ocp.args.StandardSave(state.opt_state),
    )
    metrics = None if val_loss is None else {_VAL_LOSS: val_loss}
    self._manager.save(step, args=args, metrics=metrics)

  def restore(self, step: int, abstract: step_lib.TrainState) -> step_lib.TrainState:
    """The state of `step`, laid out as `abstract` (shapes, types, shardings) says."""
    args = ocp.args.Composite(
      params=ocp.args.StandardRestore(abstract.params),
      optimizer=ocp.args.StandardRestore(abstract.opt_state),
    )
    restored = self._restore(step, args)
    count = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
    return step_lib.TrainState(count, restored['params'], restored['optimizer'])

  def restore_params(self, step: int, abstract: Any) -> Any:
    """The parameters of `step` alone, laid out as `abstract` says."""
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    return self._restore(step, args)['params']

  def _restore(self, step: int, args: ocp.args.Composite) -> Any:
    try:
      return self._manager.restore(step, args=args)
    except jax.errors.JaxRuntimeError:
      raise
    except Exception as e:  # Orbax raises all kinds, Exception itself too
      reason = str(e).splitlines()[0] if str(e) else type(e).__name__
      raise errors.UserError(
        f'{self._directory / str(step)} is not a checkpoint of the model in config.json, or it is '
        f'damaged ({reason[:300]}). Delete that step to go on from an older one, or give another '
        'model.'
      ) from e


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
  """Keeps to itself that Orbax only reads, which it warns of."""
  logger = logging.getLogger('absl')
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)
