"""Few programs compile, and they compute no more than they need."""

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.extend as jax_extend
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.generation import decode, loop, sampling
from gpt_jax.generation import settings as settings_lib
from gpt_jax.generation import state as state_lib
from gpt_jax.parallel import sharding
from tests.generation import tiny

BLOCK, VOCAB, PROMPTS = tiny.BLOCK, tiny.VOCAB, tiny.PROMPTS


def test_only_buckets_rows_and_processors_compile():
  model = tiny.model(block_size=40, n_embd=8)

  programs: tuple[Any, ...] = state_lib.prefill, decode.advance.program

  def compiled(lengths, **options):
    before = [program._cache_size() for program in programs]
    tiny.tokens(model, [tiny.prompt(length) for length in lengths], **options)
    return tuple(program._cache_size() - n for program, n in zip(programs, before, strict=True))

  assert compiled([5, 7], new=3) == (1, 1)
  assert compiled([8, 1], new=6, temperature=0.7, seed=2**32 - 1) == (0, 0)
  assert compiled([3, 12], new=1, min_new_tokens=1) == (0, 0)
  assert compiled([5, 7], new=3, top_p=0.9) == (0, 1)
  assert compiled([5, 7], new=4, top_p=0.8) == (0, 0)
  assert compiled([5, 7, 2], new=3) == (1, 1)


@pytest.mark.parametrize(
  ('block_size', 'length', 'expected'),
  [(1024, 1, 16), (1024, 32, 32), (1024, 33, 64), (1024, 513, 1024), (1000, 600, 1000), (8, 3, 8)],
)
def test_lengths_are_padded_to_few_sizes(block_size, length, expected):
  assert loop.bucket(length, block_size) == expected


def test_equal_prompts_are_computed_once_and_no_context_before_it_is_full(monkeypatch):
  prefill = mock.Mock(wraps=state_lib.prefill)
  monkeypatch.setattr(state_lib, 'prefill', prefill)
  prompts = [tiny.prompt(BLOCK - 1), tiny.prompt(3), tiny.prompt(3), tiny.prompt(4)]
  for new in (2, 3):
    tiny.tokens(tiny.model(), prompts, new=new)
  shapes = [call.args[2].shape for call in prefill.call_args_list]
  assert shapes == [(3, BLOCK), (3, BLOCK), (4, BLOCK)]


def _equations(jaxpr, name):
  """All equations of a primitive in a program, with those of its loops."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == name:
      yield equation
    for inner in jax_extend.core.jaxprs_in_params(equation.params):
      yield from _equations(inner, name)


def _programs(**options):
  """Prefill and decoding of a batch, not compiled."""
  model = tiny.model()
  modules, params = (models.make(model.config),), (model.params,)
  rows_B = np.zeros(2, np.int32)
  arguments = np.ones((1, BLOCK), np.int32), np.array([3], np.int32), rows_B, rows_B, np.uint32(0)
  fixed = {'size': BLOCK, 'log_probs': False, 'counts': False}
  prefill = functools.partial(state_lib.prefill, modules, **fixed)
  how = sampling.make(settings_lib.Settings(**options), vocab_size=VOCAB)
  state = jax.eval_shape(prefill, params, *arguments)
  advance = functools.partial(decode.advance.__wrapped__, modules)
  return (
    jax.make_jaxpr(prefill)(params, *arguments).jaxpr,
    jax.make_jaxpr(advance)(params, state, how, 5).jaxpr,
  )


def test_a_token_sorts_the_vocabulary_once():
  _, decoding = _programs(top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9)
  widths = [e.invars[0].aval.shape[-1] for e in _equations(decoding, 'top_k')]
  widths += [e.invars[0].aval.shape[-1] for e in _equations(decoding, 'sort')]
  assert sorted(widths) == [5, 5, 5, 128]


def test_prefill_computes_no_logits():
  for program, logits in zip(_programs(), (False, True), strict=True):
    shapes = [e.outvars[0].aval.shape for e in _equations(program, 'dot_general')]
    assert any(128 in shape for shape in shapes) == logits and shapes


@pytest.mark.parametrize('search', ['draws', 'beams', 'draft'])
def test_sharded_parameters_generate_as_whole_ones(search):
  names, types = ('data', 'fsdp', 'tensor'), (jax.sharding.AxisType.Auto,) * 3
  mesh = jax.make_mesh((1, 1, 2), names, axis_types=types, devices=jax.devices()[:2])

  def sharded(model):
    params = jax.device_put(model.params, sharding.tree_shardings(mesh, model.params))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params))
    return dataclasses.replace(model, params=params)

  def texts(place):
    options: dict[str, Any] = {'new': 2 * BLOCK}
    if search == 'beams':
      options = {'new': 8, 'num_beams': 3, 'seed': 0, 'temperature': 0.0, 'top_k': 0}
    elif search == 'draft':
      options['draft'] = place(tiny.model(noise=0.1))
    return tiny.tokens(place(tiny.model()), [prompt[:5] for prompt in PROMPTS], **options)

  assert texts(sharded) == texts(lambda model: model)
