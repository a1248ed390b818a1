"""manifest.json of a checkpoint: what it is, and a SHA-256 of each of its files and of itself.

It is written before the folder gets its name: a folder named by its step is a whole checkpoint.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gpt_jax import atomic, errors, json_files

_NAME, _FORMAT = 'manifest.json', 1


class Damaged(errors.UserError):
  """A checkpoint isn't what was saved."""

  def __init__(self, folder: pathlib.Path, problem: str) -> None:
    fix = 'restore it from a copy, or remove it'
    super().__init__(str(folder), f'is damaged: {problem}', fix)
    self.folder = folder


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a checkpoint is."""

  step: int
  score: float | None  # the least is the best; None: not measured
  identity: dict[str, str]  # as of `run_dir.identity`
  recovery: dict[str, Any]  # what the run knew of its bad steps
  files: dict[str, str]  # path in its folder -> SHA-256


def steps(checkpoints: pathlib.Path) -> list[int]:
  """Returns the steps that have a folder, sorted; [] if there are none."""
  names = os.listdir(checkpoints) if checkpoints.is_dir() else []
  return sorted(int(name) for name in names if name.isdecimal())


def scores(checkpoints: pathlib.Path) -> dict[int, float | None]:
  """Returns the score of each step that has a folder; None if it can't be read."""
  found: dict[int, float | None] = {}
  for step in steps(checkpoints):
    try:
      found[step] = read(checkpoints / str(step)).score
    except errors.UserError:
      found[step] = None
  return found


def best(scores: Mapping[int, float | None]) -> int | None:
  """Returns the step with the lowest score, the first if equal; None if none has one."""
  measured = {step: score for step, score in sorted(scores.items()) if score is not None}
  return min(measured, key=measured.__getitem__, default=None)


def write(folder: pathlib.Path, manifest: Manifest) -> None:
  """Writes `manifest` with the files in `folder`; all are on the disk when it returns."""
  names = _names(folder)
  for name in names:  # a power cut must not leave them empty
    with open(folder / name, 'rb') as file:
      os.fsync(file.fileno())
  _write(folder, dataclasses.replace(manifest, files=_hashes(folder, names)))


def set_score(folder: pathlib.Path, score: float) -> None:
  """Writes the manifest of a checkpoint anew, with a score."""
  _write(folder, dataclasses.replace(read(folder), score=score))


def read(folder: pathlib.Path) -> Manifest:
  """Returns the manifest of a checkpoint.

  Raises:
    Damaged: It is missing, or not as it was written there.
    UserError: A newer version wrote it.
  """
  path = folder / _NAME
  try:
    values = json_files.read(path)
  except errors.UserError as e:
    raise Damaged(folder, f'{_NAME} {e.problem}') from e
  digest, version = values.pop('sha256', None), values.get('format')
  if digest != _digest(values):
    raise Damaged(folder, f'{_NAME} has changed')
  if version != _FORMAT:
    problem = f'has format {version}, this version of gpt_jax reads {_FORMAT}'
    raise errors.UserError(str(path), problem, 'install a newer one')
  del values['format']
  manifest = Manifest(**values)
  if str(manifest.step) != folder.name:
    raise Damaged(folder, f'{_NAME} is that of step {manifest.step}')
  return manifest


def verify(folder: pathlib.Path, items: Collection[str] = ()) -> Manifest:
  """Returns the manifest of a checkpoint after a look at all its files, or at those of `items`.

  Raises `UserError` as `read` does, and `Damaged` if a file is missing or has changed.
  """
  manifest = read(folder)
  names = [name for name in manifest.files if not items or name.partition('/')[0] in items]
  try:
    found = _hashes(folder, names)
  except OSError as e:
    name = os.path.relpath(e.filename or folder, folder)
    raise Damaged(folder, f'{name} ({e.strerror})') from e
  if changed := [name for name in names if found[name] != manifest.files[name]]:
    raise Damaged(folder, f'{changed[0]} has changed')
  return manifest


def first_intact(
  checkpoints: pathlib.Path, candidates: Iterable[int], items: Collection[str] = ()
) -> tuple[Manifest | None, list[Damaged]]:
  """Returns the first of these steps that `verify` finds intact, and what is wrong with others."""
  damaged: list[Damaged] = []
  for step in candidates:
    try:
      return verify(checkpoints / str(step), items), damaged
    except Damaged as e:
      damaged.append(e)
  return None, damaged


def _write(folder: pathlib.Path, manifest: Manifest) -> None:
  values = {'format': _FORMAT, **dataclasses.asdict(manifest)}
  atomic.write_json(folder / _NAME, values | {'sha256': _digest(values)})


def _names(folder: pathlib.Path) -> list[str]:
  paths = sorted(path for path in folder.rglob('*') if path.is_file())
  return [path.relative_to(folder).as_posix() for path in paths if path != folder / _NAME]


def _hashes(folder: pathlib.Path, names: list[str]) -> dict[str, str]:
  def sha256(name: str) -> str:
    with open(folder / name, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()

  with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets other threads run
    return dict(zip(names, pool.map(sha256, names), strict=True))


def _digest(values: Any) -> str:
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
