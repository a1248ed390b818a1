"""The directory of a run, checked before anything slow, then written; `run_dir` reads it."""

import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gpt_jax import atomic, errors, knobs
from gpt_jax import config as config_lib
from gpt_jax.data import loader
from gpt_jax.parallel import processes
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import optimizer
from gpt_jax.weights import manifest, run_dir

# Keys that may change within a run: they decide where it is computed and what is reported, not the
# parameters (except for the order of float32 sums, which mesh and gradient_accumulation change).
_FREE = re.compile(
  r'(mesh|processes)\..*|model\.(attention|remat|remat_keep)|data\.(cache_dir|processes|verify)'
  r'|train\.(gradient_accumulation|deterministic|.*_every|eval_batches|keep_checkpoints)'
  r'|train\.(tensorboard|trackers|max_minutes|patience)'
)
# Keys that processes of one run may have values of their own for.
_OWN = re.compile(r'processes\.|data\.(cache_dir|processes)')
# Keys that the data decides.
_RESOLVED = ('model.vocab_size', 'model.classes', 'model.mask_id')
# Keys that may change if the learning rates of the steps taken stay the same.
_SCHEDULE = re.compile(
  r'train\.steps|optimizer\.(.*learning_rate|warmup_steps|schedule|decay_steps)'
)


class Run(run_dir.RunDir):
  """The directory of a run that starts or resumes.

  Attributes:
    step: The newest step with a checkpoint; None if there is none: then the run may start anew.
  """

  def __init__(self, path: str | os.PathLike[str]) -> None:
    super().__init__(path)
    self.step = max(manifest.steps(self.checkpoints), default=None)

  def check(self, config: config_lib.Config) -> None:
    """Raises `UserError` unless `config`, not yet resolved, may start or resume here."""
    if self.step is None:
      return
    if not self.config.exists():
      problem = f'{self.path} has checkpoints but no config.json'
      raise errors.UserError('workdir', problem, 'choose another')
    errors.raise_all(list(self._differences(config)))

  def find_intact(self) -> None:
    """Makes `step` the newest intact checkpoint; sets newer ones, which are damaged, aside.

    Raises `UserError` if there are checkpoints, but none is intact.
    """
    if processes.is_primary() and self.step is not None:
      newest_first = manifest.steps(self.checkpoints)[::-1]
      intact, damaged = manifest.first_intact(self.checkpoints, newest_first)
      if intact is None:
        fix = 'restore one from a copy, or choose another'
        newest = f'{damaged[0].key} {damaged[0].problem}'
        raise errors.UserError('workdir', f'no checkpoint is intact: {newest}', fix)
      self.step = intact.step
      self.set_aside(damaged, warn=print)
    self.step = processes.gather(self.step)[0]

  def set_aside(self, damaged: list[manifest.Damaged], *, warn: Callable[[str], None]) -> None:
    """Renames damaged checkpoints, so that nothing takes them."""
    for problem in damaged:
      aside = problem.folder.with_name(f'{problem.folder.name}.damaged')
      shutil.rmtree(aside, ignore_errors=True)
      problem.folder.rename(aside)
      warn(
        f'warning: {problem.key} {problem.problem}; it is {aside.name} now, an older one is used'
      )

  def _differences(self, config: config_lib.Config) -> Iterator[errors.UserError]:
    """What keeps `config` from resuming the run."""
    old, taken = self.read_config(), self.step or 0
    changed = [
      (was.key, was.value, now.value)
      for was, now in zip(knobs.knobs(old), knobs.knobs(config), strict=True)
      if was.value != now.value
      and not _FREE.fullmatch(was.key)
      and not (was.key in _RESOLVED and now.value == now.field.default)  # not resolved yet
    ]
    fix = 'or choose another `workdir`'
    same = any(_SCHEDULE.fullmatch(key) for key, *_ in changed) and np.array_equal(
      *(
        optimizer.make_schedule(c.optimizer, c.train.steps)(np.arange(taken)) for c in (old, config)
      )
    )
    for key, was, now in changed:
      if key == 'train.steps' and now < taken:
        problem = f'{now} must be at least {taken}, the steps that {self.path} has taken'
        yield errors.UserError(key, problem, fix)
      elif not _SCHEDULE.fullmatch(key):
        yield errors.UserError(key, f'{now!r} must be {was!r} to resume {self.path}', fix)
      elif not same:
        problem = f'{now!r} must be {was!r} to resume {self.path} with the same learning rates'
        yield errors.UserError(key, problem, fix)

  def is_finished(self, config: config_lib.Config) -> bool:
    """As `metrics.is_finished`, at the newest checkpoint."""
    return metrics_lib.is_finished(metrics_lib.read(self.metrics), self.step, config.train)

  def start(self, config: config_lib.Config, data: loader.Data) -> None:
    """Writes what describes the run: its resolved config, its tokenizer, hashes of its text.

    Raises:
      UserError: The run began with other text or another tokenizer, or the processes differ in
        config, text or newest checkpoint.
    """
    if jax.process_count() > 1:
      processes.compare(self._facts(config, data))
    if self.step is not None:
      found = self.changed_text(data.content_hashes)
      if self.read_tokenizer().hash != data.tokenizer.hash:
        problem = f'the tokenizer has changed since {self.path} began'
        fix = 'undo the change, or choose another `workdir`'
        found.append(errors.UserError('data.tokenizer', problem, fix))
      errors.raise_all(found)
    if processes.is_primary():
      # Else it is noticed by the first save, without which training goes on.
      if self.checkpoints.exists() and not os.access(self.checkpoints, os.W_OK):
        problem = f'{self.checkpoints} cannot be written'
        raise errors.UserError('workdir', problem, 'is it read-only?')
      self.path.mkdir(parents=True, exist_ok=True)
      atomic.write_json(self.config, dataclasses.asdict(config))
      atomic.write_json(self.tokenizer, data.tokenizer.to_dict())
      atomic.write_json(self.text, data.content_hashes)
    processes.gather(None)
    if not self.config.exists():
      problem = f'{self.path} is not on storage that all processes share'
      raise errors.UserError('workdir', problem)

  def _facts(self, config: config_lib.Config, data: loader.Data) -> dict[str, Any]:
    """What must be the same on all processes: else they train on nonsense or wait forever."""
    facts = {k.key: k.value for k in knobs.knobs(config) if not _OWN.match(k.key)}
    first = data.train.train_rows(np.arange(config.train.batch_size))
    rows = hashlib.sha256(b''.join(x.tobytes() for x in jax.tree.leaves(first)))
    return facts | {
      'the version of jax': jax.__version__,
      'the newest checkpoint': self.step,
      'the text': data.content_hashes,
      'the tokenizer': data.tokenizer.hash,
      'the first batch': rows.hexdigest(),
    }
