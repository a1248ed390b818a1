"""Files of a checkpoint that have changed: it is noticed, and the next intact one is used."""

import os
import pathlib
import random

from gpt_jax.weights import manifest, saved_model
from tests.chaos import child, kills


def trial(folder: pathlib.Path, flips: int, cuts: int) -> child.Result:
  """Damages the checkpoint that a run gives, also by a missing file; returns what was found."""
  log, run, rng = folder / 'log', folder / 'run', random.Random(0)
  status, _ = child.call(log, child.run, kills.config_of(folder, steps=12), run)
  assert status == 0, log.read_text()
  taken = saved_model.open_model(run)
  checkpoint = run / 'checkpoints' / str(taken.step)
  # All but commit_success.txt, which nobody reads.
  files = [checkpoint / name for name in ('manifest.json', *manifest.read(checkpoint).files)]
  sizes = [path.stat().st_size for path in files]
  done = missed = other = 0

  def look(path: pathlib.Path) -> None:
    """Looks at the run whose file at `path` is damaged."""
    nonlocal done, missed, other
    done += 1
    try:
      manifest.verify(checkpoint)
      missed += 1
    except manifest.Damaged:
      pass
    concerned = 'optimizer' not in path.parts
    other += concerned == (saved_model.open_model(run).step == taken.step)

  descriptor = os.open(log, os.O_WRONLY | os.O_TRUNC)
  errors = os.dup(2)
  os.dup2(descriptor, 2)  # the warnings
  for i in range(flips + cuts):
    path = rng.choices(files, sizes)[0] if i % 2 else rng.choice(files)
    content = bytearray(path.read_bytes())
    if not content:
      continue
    if i < flips:
      content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
      del content[rng.randrange(len(content)) :]
    before = path.read_bytes()
    path.write_bytes(content)
    look(path)
    path.write_bytes(before)
  for path in files:
    before = path.read_bytes()
    path.unlink()
    look(path)
    path.write_bytes(before)
  os.dup2(errors, 2)
  assert manifest.verify(checkpoint).step == taken.step
  text = f'{done} damages: {missed} not noticed, {other} times the wrong checkpoint taken'
  return child.Result(text, missed + other)
