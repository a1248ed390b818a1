"""What the tests of runs share."""

import collections.abc

import jax
import pytest


@pytest.fixture(scope='module')
def compile_once(tmp_path_factory: pytest.TempPathFactory) -> collections.abc.Iterator[None]:
  """For modules in which nearly all runs are of one program: it is compiled once."""
  options = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in options.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
