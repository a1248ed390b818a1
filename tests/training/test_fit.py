"""What is advised to a run without memory fits, and what costs less time would not."""

import functools
import itertools
from typing import Any

import jax
import pytest

from gpt_jax import config as config_lib
from gpt_jax import knobs, oom
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import fit
from gpt_jax.training import program as program_lib
from tests import raised

COUNT, REMAT, KEEP = 'train.gradient_accumulation', 'model.remat', 'model.remat_keep'
PRODUCTS: dict[str, Any] = {REMAT: True, KEEP: 'products'}


def _program(changes):
  config = config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_size=64, attention='xla'
    ),
    train=config_lib.TrainConfig(batch_size=16),
  )
  config = knobs.replace(config, changes)
  return program_lib.build(config, mesh_lib.make_mesh(config))


def _made_up(program):
  """What a step needs: less with more parts, and with less that is kept."""
  model, parts = program.config.model, program.config.train.gradient_accumulation
  kept = 1 if not model.remat else 0.4 if model.remat_keep == 'products' else 0.1
  return 1000 * kept / parts + 10


def test_the_first_that_fits_is_found(monkeypatch):
  monkeypatch.setattr(fit, 'needed', _made_up)
  monkeypatch.setattr(program_lib, 'build', functools.cache(program_lib.build))
  # Two devices: up to eight parts.
  order = [
    remat | ({COUNT: count} if count > 1 else {})
    for remat, count in itertools.product(({}, PRODUCTS, {REMAT: True}), (1, 2, 4, 8))
  ]
  needs = [_made_up(_program(changes)) for changes in order]
  for limit in (*needs, *(need - 1 for need in needs)):
    fitting = [changes for changes, need in zip(order, needs, strict=True) if need <= limit]
    assert fit.smallest_change(_program({}), limit) == (fitting[0] if fitting else None)


def test_what_a_config_does_already_is_not_advised(monkeypatch):
  monkeypatch.setattr(fit, 'needed', _made_up)
  program = _program({COUNT: 2} | PRODUCTS)
  assert fit.smallest_change(program, 210) == {}
  assert fit.smallest_change(program, 209) == {COUNT: 4}
  assert fit.smallest_change(program, 25) == {COUNT: 8, KEEP: 'nothing'}
  assert fit.smallest_change(program, 20) is None


def test_a_step_in_parts_needs_less_and_more_than_its_state():
  whole, parts = _program({}), _program({COUNT: 8})
  assert mesh_lib.per_device_bytes(whole.state) < fit.needed(parts) < fit.needed(whole)


def test_a_compiler_that_refuses_does_not_fit(monkeypatch):
  def refuse(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

  program = _program({})
  monkeypatch.setattr(jax.stages.Lowered, 'compile', refuse)
  assert fit.needed(program) == float('inf')


@pytest.mark.parametrize(('memory', 'advised'), [(600, f'`{COUNT}=2`'), (1, '`mesh.fsdp`')])
def test_the_advice_names_config_keys(monkeypatch, memory, advised):
  monkeypatch.setattr(fit, 'needed', _made_up)
  monkeypatch.setattr(oom, 'device_memory', lambda: memory)
  assert advised in fit.advice(_program({}))


def test_a_step_that_needs_more_than_there_is_is_not_taken(monkeypatch):
  program = _program({}).compile()
  fit.check(program)
  monkeypatch.setattr(oom, 'device_memory', lambda: 1000)
  monkeypatch.setattr(fit, 'needed', _made_up)
  error = raised.user_error(fit.check, program)
  assert (error.key, f'`{COUNT}=2`' in error.fix) == ('out of device memory', True)
