"""What a program is built with follows from the config: the arrays of a batch, the attention."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from gpt_jax import config as config_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import step as step_lib


def _config(*, chunks='windows', **model):
  tiny = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'block_size': 8, 'vocab_size': 30}
  return config_lib.Config(
    model=config_lib.ModelConfig(**{**tiny, 'pad_vocab_to': 1, **model}),
    data=config_lib.DataConfig(chunks=chunks),
    train=config_lib.TrainConfig(batch_size=16, gradient_accumulation=2),
  )


@pytest.mark.parametrize('chunks', ['windows', 'partition', 'sentences', 'packed'])
def test_a_batch_has_segments_if_rows_are_packed(chunks):
  program = program_lib.build(_config(chunks=chunks))
  arrays = [x for x in program.batch if x is not None]
  assert len(arrays) == (3 if chunks == 'packed' else 2)
  assert isinstance(program.batch, step_lib.Batch) and program.batch.targets_ABL is not None
  assert {(x.shape, x.dtype, x.sharding) for x in arrays} == {
    ((2, 8, 8), jnp.dtype('int32'), program.batch.inputs_ABL.sharding)
  }
  assert program.tokens_per_step == 16 * 8
  _, metrics = jax.eval_shape(program.train_step, program.state, program.batch)
  assert set(metrics) == {'loss', 'grad_norm', 'learning_rate'}


CUDNN = {'dtype': 'bfloat16', 'dropout': 0.0}


@pytest.mark.parametrize(
  'device, options, kernel',
  [
    ('NVIDIA H200', CUDNN, 'cudnn'),
    ('NVIDIA H200', {**CUDNN, 'chunks': 'partition'}, 'cudnn'),
    ('NVIDIA H200', {**CUDNN, 'chunks': 'packed'}, 'xla'),
    ('NVIDIA H200', {**CUDNN, 'dropout': 0.1}, 'xla'),
    ('NVIDIA H200', {**CUDNN, 'dtype': 'float32'}, 'xla'),
    ('NVIDIA H200', {**CUDNN, 'n_head': 4}, 'xla'),
    ('NVIDIA H200', {**CUDNN, 'attention': 'xla'}, 'xla'),
    ('cpu', CUDNN, 'xla'),
  ],
)
def test_auto_attention_is_cudnns_where_that_can_do_it(device, options, kernel):
  devices = [SimpleNamespace(device_kind=device)]
  with (
    mock.patch.object(jax, 'devices', return_value=devices),
    # cuDNN itself isn't there.
    mock.patch.object(jax.nn, 'dot_product_attention', lambda q, k, v, **_: q),
  ):
    program = program_lib.build(_config(**options))
  assert program.config.model.attention == kernel
