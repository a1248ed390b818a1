"""What the tests of runs share."""

import collections.abc
import dataclasses
import functools
import pathlib

import jax
import pytest

from gpt_jax import config as config_lib
from gpt_jax.training import plot
from gpt_jax.training import program as program_lib

_build, _compile = program_lib.build, program_lib.Program.compile


@functools.cache
def _compiled(config: config_lib.Config, mesh: jax.sharding.Mesh) -> program_lib.Program:
  return _compile(_build(config, mesh))


@pytest.fixture(scope='module')
def quick_runs() -> collections.abc.Iterator[None]:
  """Compiles equal programs once, and writes a stub instead of each plot."""

  def share(config: config_lib.Config, mesh: jax.sharding.Mesh) -> program_lib.Program:
    assert config.optimizer.schedule == 'constant', 'other programs depend on the steps'
    train = config_lib.TrainConfig(
      batch_size=config.train.batch_size,
      gradient_accumulation=config.train.gradient_accumulation,
      seed=config.train.seed,
    )
    chunks = 'packed' if config.has_segments else 'windows'
    data = config_lib.DataConfig(chunks=chunks, row_length=config.data.row_length)
    what_counts = dataclasses.replace(config, train=train, data=data, init_from='')
    return dataclasses.replace(_compiled(what_counts, mesh), config=config)

  def draw(lines: object, path: pathlib.Path, *, title: str) -> None:
    path.write_bytes(title.encode())

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(program_lib, 'build', share)
    patch.setattr(program_lib.Program, 'compile', lambda program, kernels=None: program)
    patch.setattr(plot, 'draw', draw)
    yield
