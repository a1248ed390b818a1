"""Checkpoints of a run: saved asynchronously, the newest few and the best one kept.

The only module that imports Orbax. A checkpoint `checkpoints/<step>/` has two items, so that a
model can be loaded without its optimizer: `params`, and `optimizer` (moments, counts and, if the
model is an average, the parameters that training goes on from); and a manifest. What has another
name there isn't finished, or is about to be removed.
"""

import contextlib
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

from gpt_jax import errors
from gpt_jax.parallel import processes
from gpt_jax.weights import manifest as manifest_lib

_UNFINISHED, _REMOVED = '.orbax-checkpoint-tmp', '.removed'  # how names end

# Orbax warns through absl's logger of what we mean to do, such as to restore on other devices.
logging.getLogger('absl').addFilter(lambda record: '/orbax/' not in record.pathname)
# And asyncio of each array that was still being written when a save failed, which raises its error.
logging.getLogger('asyncio').addFilter(lambda record: 'ocdbt' not in record.getMessage().lower())


class Checkpoints:
  """Saves the checkpoints of one run. A context manager: leaving it waits for the last save.

  A save that fails is reported by `warn`, and the run goes on; if it was the last one, leaving
  raises `UserError`. Older checkpoints are removed only once a newer one is on the disk.
  """

  def __init__(
    self, directory: pathlib.Path, *, keep: int, warn: Callable[[str], None] = print
  ) -> None:
    """Opens `directory`, made if it is missing. Keeps the `keep` newest and the best."""
    self._directory, self._keep, self._warn = directory.absolute(), keep, warn
    # Of process 0: another might not see yet what that has just set aside.
    self._scores = dict(processes.gather(list(manifest_lib.scores(self._directory).items()))[0])
    self._saving: manifest_lib.Manifest | None = None
    self._also_keep: int | None = None
    self._failed: errors.UserError | None = None
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(),
      # Called just before Orbax gives a folder its name.
      async_options=ocp.AsyncOptions(post_finalization_callback=self._describe),
      # Else it writes one more file after that, which nothing needs.
      checkpoint_metadata_store=ocp.metadata.metadata_store(enable_write=False),
    )
    if processes.is_primary():
      self._directory.mkdir(parents=True, exist_ok=True)
      for path in (*self._unfinished('*'), *self._directory.glob(f'*{_REMOVED}')):
        shutil.rmtree(path)

  @property
  def steps(self) -> list[int]:
    """The steps of the finished checkpoints that are kept."""
    return list(self._scores)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, _: object, error: BaseException | None, *more: object) -> None:
    if isinstance(error, KeyboardInterrupt):  # it doesn't want to wait
      return
    self.wait()
    self._checkpointer.close()
    if self._failed and (error is None or isinstance(error, errors.Stopped)):
      raise self._failed from error

  def save(
    self,
    step: int,
    items: Mapping[str, Any],
    *,
    score: float | None,
    identity: dict[str, str],
    recovery: Mapping[str, Any] | None = None,
    also_keep: int | None = None,
  ) -> None:
    """Starts to save `items`, trees by name; copies them off the device before it returns.

    The manifest gets `score`, `identity` and `recovery`. If `step` was saved before its evaluation
    ended, only records `score`: the lowest is the best. Keeps step `also_keep` until the next call.
    """
    self.wait()
    self._also_keep = also_keep
    if step not in self._scores:
      self._saving = manifest_lib.Manifest(step, score, identity, dict(recovery or {}), {})
      saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
      try:
        self._check_space(sum(x.nbytes for x in jax.tree.leaves(items)))
        folder = self._directory / str(step)
        self._checkpointer.save(folder, args=ocp.args.Composite(**saves))
      except jax.errors.JaxRuntimeError:
        raise
      except Exception as e:  # Orbax raises all kinds, Exception itself too
        self._fail(e)
    elif score is not None:
      self._scores[step] = score
      if processes.is_primary():
        manifest_lib.set_score(self._directory / str(step), score)

  def wait(self) -> None:
    """Waits for the save under way, if any; then removes what need not be kept any longer."""
    if self._saving is None:
      return
    try:
      self._checkpointer.wait_until_finished()
    except Exception as e:
      self._fail(e)
      return
    self._scores[self._saving.step] = self._saving.score
    self._saving = self._failed = None
    kept = {*sorted(self._scores)[-self._keep :], manifest_lib.best(self._scores), self._also_keep}
    if processes.is_primary():
      _sync(self._directory)
    for step in self._scores.keys() - kept:
      del self._scores[step]
      if processes.is_primary():
        remove(self._directory / str(step))

  def _fail(self, error: Exception) -> None:
    """Reports that the save under way has failed, and removes what there is of it."""
    assert self._saving is not None
    # tensorstore names the system's reason at the end of a page about its own settings.
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
      reason = os.strerror(int(code[1]))
    else:
      reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    folder, self._saving = self._directory / str(self._saving.step), None
    fix = 'free space or repair the disk; the same command resumes'
    self._failed = errors.UserError(str(folder), f'could not be saved ({reason})', fix)
    self._warn(f'warning: {self._failed}')
    if processes.is_primary():
      for path in self._unfinished(folder.name):
        shutil.rmtree(path, ignore_errors=True)

  def _describe(self) -> None:
    assert self._saving is not None
    (folder,) = self._unfinished(str(self._saving.step))
    manifest_lib.write(folder, self._saving)

  def _check_space(self, needed: int) -> None:
    """Raises `OSError` if there isn't room for `needed` bytes."""
    free, *_ = processes.gather(shutil.disk_usage(self._directory).free)
    if free < needed:
      raise OSError(f'it takes up to {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free')

  def _unfinished(self, step: str) -> list[pathlib.Path]:
    return list(self._directory.glob(f'{step}{_UNFINISHED}*'))


def restore(folder: pathlib.Path, abstract_items: Mapping[str, Any]) -> dict[str, Any]:
  """Returns items of a checkpoint, laid out like the abstract ones (shapes, types, shardings).

  `manifest.verify` says whether it is intact. Raises `UserError` if it is damaged all the same, or
  has other shapes.
  """
  args = {k: ocp.args.StandardRestore(tree) for k, tree in abstract_items.items()}
  try:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
      restored = checkpointer.restore(folder.absolute(), args=ocp.args.Composite(**args))
  except jax.errors.JaxRuntimeError:
    raise
  except Exception as e:
    problem = 'is damaged, or not a checkpoint of the model in config.json'
    raise errors.UserError(str(folder), problem, 'remove it to resume from an older one') from e
  return {name: restored[name] for name in abstract_items}


def remove(folder: pathlib.Path) -> None:
  """Removes a checkpoint, if it is there; a crash leaves nothing that looks like one."""
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(folder.replace(folder.with_name(folder.name + _REMOVED)))


def _sync(folder: pathlib.Path) -> None:
  """Makes the names in a folder be on the disk."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
