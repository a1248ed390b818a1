"""Tiny runs, what they leave, and how they are interrupted."""

import collections.abc
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import knobs, train
from gpt_jax.data import batches
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import metrics, objectives, report
from gpt_jax.training import program as program_lib
from gpt_jax.training import run as run_lib
from gpt_jax.weights import checkpoints as checkpoints_lib
from gpt_jax.weights import manifest

STEPS = 6


def make_config(folder: pathlib.Path, **changes: Any) -> config_lib.Config:
  """Returns a config whose text has something to learn: its characters depend on each other."""
  text = folder / 'sea.txt'
  if not text.exists():
    text.write_text('the sea, the sea and the sand; a wave and then a wave. ' * 40)
  config = config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.1, pad_vocab_to=8
    ),
    data=config_lib.DataConfig(
      source=f'text:{text}', tokenizer='byte', cache_dir=str(folder / 'cache'), processes=1
    ),
    train=config_lib.TrainConfig(
      steps=STEPS,
      batch_size=16,
      gradient_accumulation=2,
      log_every=1,
      eval_every=3,
      eval_batches=2,
      checkpoint_every=5,
    ),
    optimizer=config_lib.OptimizerConfig(learning_rate=2e-2, warmup_steps=2, schedule='constant'),
  )
  return change(config, **changes)


def change(config: config_lib.Config, **changes: Any) -> config_lib.Config:
  """Returns a copy with other values: `train__steps=3` for `train.steps`."""
  values = {key.replace('__', '.'): value for key, value in changes.items()}
  changed: config_lib.Config = knobs.replace(config, values)
  return changed


def run(config: config_lib.Config, path: pathlib.Path) -> pathlib.Path:
  train.train(config, path)
  return path


def lines(path: pathlib.Path) -> list[metrics.Line]:
  """Returns the metrics of a run without what depends on the clock."""
  clocks = ('time', 'perf/tokens_per_second')
  return [
    {key: value for key, value in line.items() if key not in clocks}
    for line in metrics.read(path / 'metrics.jsonl')
  ]


def val_losses(path: pathlib.Path) -> dict[int, float]:
  return {int(line['step']): line['val/loss'] for line in lines(path) if 'val/loss' in line}


def saved_state(path: pathlib.Path, step: int | None = None) -> dict[str, Any]:
  """Returns the trees of a checkpoint, the last by default, on the host."""
  found = run_lib.Run(path)
  config = found.read_config()
  state = program_lib.build(config, mesh_lib.make_mesh(config)).state
  abstract = {'params': state.params, 'optimizer': state.opt_state}
  folder = found.checkpoints / str(found.step if step is None else step)
  manifest.verify(folder)
  host: dict[str, Any] = jax.device_get(checkpoints_lib.restore(folder, abstract))
  return host


def assert_trees_equal(one: Any, other: Any) -> None:
  jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_same(a: pathlib.Path, b: pathlib.Path) -> None:
  """Asserts that two runs ended with the same bits and wrote the same metrics."""
  assert_trees_equal(saved_state(a), saved_state(b))
  assert lines(a) == lines(b)


def files(path: pathlib.Path) -> dict[pathlib.Path, bytes]:
  return {file: file.read_bytes() for file in path.rglob('*') if file.is_file()}


def spoil(patch: pytest.MonkeyPatch, bad: list[int]) -> None:
  """Puts something into training rows of these numbers that makes a loss not finite."""
  rows, loss = batches.Dataset.train_rows, objectives.loss
  byte = 250  # isn't in the text

  def train_rows(self: batches.Dataset, numbers: np.ndarray) -> Any:
    batch = rows(self, numbers)
    batch.inputs[np.isin(numbers, bad), 0] = byte
    return batch

  def nan_loss(model: Any, params: Any, part: Any, key: Any) -> Any:
    return loss(model, params, part, key) * jnp.where((part.inputs == byte).any(), jnp.nan, 1.0)

  patch.setattr(batches.Dataset, 'train_rows', train_rows)
  patch.setattr(objectives, 'loss', nan_loss)


def at_step(
  patch: pytest.MonkeyPatch, step: int, action: collections.abc.Callable[[], object]
) -> None:
  """Calls `action` when a run has read the metrics of `step`."""
  original = report.Console.step

  def spy(self: report.Console, current: int, loss: float) -> None:
    original(self, current, loss)
    if current == step:
      action()

  patch.setattr(report.Console, 'step', spy)
