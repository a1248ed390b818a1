"""A model is computed in the type that is asked for, and its matrices are kept in it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from gpt_jax import errors

FIXTURE = 'tests/weights/fixtures/huggingface/untied'


@pytest.fixture(scope='module')
def directory(request):
  return request.config.rootpath / FIXTURE


def _is_matrix(path):
  return path[-1].key in ('kernel', 'embedding', 'lm_head')


@pytest.mark.parametrize(
  ('dtype', 'wanted'), [('auto', 'float32'), ('float32', 'float32'), ('bfloat16', 'bfloat16')]
)
def test_matrices_are_of_the_type_that_is_asked_for_and_the_rest_is_float32(
  directory, dtype, wanted
):
  assert jax.default_backend() == 'cpu'
  model = gpt_jax.load(directory, dtype=dtype)
  assert model.config.dtype == wanted
  for path, leaf in jax.tree_util.tree_leaves_with_path(model.params):
    assert leaf.dtype == jnp.dtype(wanted if _is_matrix(path) else 'float32'), path


def test_matrices_in_bfloat16_give_the_numbers_of_float32_ones_computed_in_bfloat16(directory):
  kept = gpt_jax.load(directory, dtype='bfloat16')
  whole = gpt_jax.load(directory)
  rounded = dataclasses.replace(whole, config=dataclasses.replace(whole.config, dtype='bfloat16'))
  tokens_BL = np.arange(14).reshape(2, 7)
  np.testing.assert_array_equal(kept.logits(tokens_BL), rounded.logits(tokens_BL))
  assert np.abs(np.asarray(kept.logits(tokens_BL) - whole.logits(tokens_BL))).max() > 1e-4


def test_another_type_is_refused(directory):
  with pytest.raises(errors.UserError, match="dtype: 'int8' must be one of auto, float32"):
    gpt_jax.load(directory, dtype='int8')
