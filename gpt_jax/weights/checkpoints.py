"""Checkpoints of a run: saved asynchronously, the newest few and the best one kept.

The only module that imports Orbax. A checkpoint `checkpoints/<step>/` has two items, so that a
model can be loaded without its optimizer: `params`, and `optimizer` (Adam's moments and counts).
"""

import logging
import operator
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gpt_jax import atomic, errors

_SCORE = 'val/loss'  # its name on disk, where it may be the error of a classifier

# Orbax warns through absl's logger of what we mean to do, such as only to read.
logging.getLogger('absl').addFilter(lambda record: '/orbax/' not in record.pathname)


class Checkpoints:
  """The checkpoints of one run. A context manager: leaving it waits for unfinished saves.

  An error of an asynchronous save is raised by the next save, or on leaving.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int, read_only: bool = False) -> None:
    """Opens `directory`, created unless `read_only`. Keeps the `keep` newest and the best."""
    get_score = operator.itemgetter(_SCORE)
    best = policies.BestN(
      get_metric_fn=get_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    self._directory = directory.absolute()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
      best_fn=get_score,  # without it Orbax doesn't write the metrics: a resume forgets the best
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
    """Returns the steps that were complete when this was opened, and those saved since, sorted."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """Returns the kept step with the lowest score; None if none was measured."""
    return self._manager.best_step()

  def identity(self, step: int) -> dict[str, str]:
    """Returns the identity that `step` was saved with; empty for checkpoints of older versions."""
    return dict(self._manager.metadata(step).custom_metadata or {})

  def save(
    self, step: int, items: Mapping[str, Any], *, score: float | None, identity: dict[str, str]
  ) -> None:
    """Starts to save `items`, trees by name; copies them off the device before it returns.

    If `step` was saved before its evaluation ended, only records `score`: the lowest is the best.
    """
    metrics = None if score is None else {_SCORE: score}
    if step not in self._manager.all_steps():
      saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
      args = ocp.args.Composite(**saves)
      self._manager.save(step, args=args, metrics=metrics, custom_metadata=identity)
    elif metrics:
      name = ocp.checkpoint_manager.METRIC_ITEM_NAME  # of the folder and of the file in it
      folder = self._directory / str(step) / name
      folder.mkdir(exist_ok=True)
      atomic.write_json(folder / name, metrics)
      self._manager.reload()

  def restore(self, step: int, abstract_items: Mapping[str, Any]) -> dict[str, Any]:
    """Returns items of `step`, laid out like the abstract ones (shapes, types, shardings).

    Raises `UserError` if the checkpoint is damaged, or has other shapes.
    """
    args = {k: ocp.args.StandardRestore(tree) for k, tree in abstract_items.items()}
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**args))
    except jax.errors.JaxRuntimeError:
      raise
    except Exception as e:  # Orbax raises all kinds, Exception itself too
      problem = 'is damaged, or not a checkpoint of the model in config.json'
      folder = str(self._directory / str(step))
      raise errors.UserError(folder, problem, 'delete it to resume from an older one') from e
    return {name: restored[name] for name in abstract_items}
