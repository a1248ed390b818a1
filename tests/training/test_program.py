"""What is resolved once: vocabulary and attention; and the arrays that a program takes."""

import pathlib
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs
from gpt_jax.data.tokenizers import char
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib
from gpt_jax.training import report
from tests import raised

TOKENIZER = char.ByteTokenizer()


def _config(*, chunks='windows', tensor=1, **model):
  tiny = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'block_size': 8, 'pad_vocab_to': 1}
  return config_lib.Config(
    model=config_lib.ModelConfig(**{**tiny, **model}),
    data=config_lib.DataConfig(chunks=chunks),
    train=config_lib.TrainConfig(batch_size=16, gradient_accumulation=2),
    mesh=config_lib.MeshConfig(tensor=tensor),
  )


def _resolve(config):
  return program_lib.resolve(config, TOKENIZER, (), mesh_lib.make_mesh(config))


@pytest.mark.parametrize('chunks', ['windows', 'partition', 'sentences', 'packed'])
def test_a_batch_has_segments_if_rows_are_packed(chunks):
  config = _resolve(_config(chunks=chunks))
  program = program_lib.build(config, mesh_lib.make_mesh(config))
  assert (program.batch.segments is not None) == (chunks in ('packed', 'sentences'))
  assert (program.tokens.shape, program.tokens.dtype) == ((2, 8, 8), jnp.int32)
  _, metrics = jax.eval_shape(program.train_step, program.state, program.batch)
  assert set(metrics) == {'loss', 'grad_norm', 'learning_rate', 'skipped'}


def test_the_vocabulary_is_the_tokenizers():
  assert _resolve(_config()).model.vocab_size == 257
  assert _resolve(_config(vocab_size=257)) == _resolve(_config())
  with pytest.raises(errors.UserError) as e:
    _resolve(_config(vocab_size=256))
  assert e.value.key == 'model.vocab_size'


def test_a_mesh_that_cannot_shard_the_vocabulary_is_an_error_once_it_is_known():
  with pytest.raises(errors.UserError) as e:
    _resolve(_config(tensor=2))
  assert e.value.key == 'model.pad_vocab_to'
  assert _resolve(_config(tensor=2, pad_vocab_to=2)).model.padded_vocab_size == 258


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
    ('TPU v5 lite', {'block_size': 256}, 'splash'),
    ('TPU v5 lite', {'block_size': 256, 'chunks': 'packed'}, 'splash'),
    ('TPU v5 lite', {'block_size': 256, 'dropout': 0.1}, 'xla'),
    ('TPU v5 lite', {'block_size': 200}, 'xla'),
    ('TPU v5 lite', {'block_size': 256, 'kind': 'lstm', 'tie_embeddings': False}, 'xla'),
  ],
)
def test_auto_attention_is_the_kernel_of_the_device_if_that_can_do_it(device, options, kernel):
  mesh = mock.Mock(
    devices=np.array([SimpleNamespace(device_kind=device)]),
    shape={'data': 1, 'fsdp': 1, 'tensor': 1},
  )
  resolved = program_lib.resolve(_config(**options), TOKENIZER, (), mesh)
  assert resolved.model.attention == kernel


def test_attention_that_was_chosen_but_does_not_work_is_replaced_and_told(capsys):
  wanted = _config(attention='cudnn', pad_vocab_to=2, vocab_size=257)  # there is no cuDNN on a CPU
  program = program_lib.build(wanted, mesh_lib.make_mesh(wanted))
  error = raised.user_error(report.compile_program, program, attention='cudnn')
  assert error.key == 'model.attention'
  assert capsys.readouterr().out == ''
  compiled = report.compile_program(program, attention='auto')
  assert compiled.config == knobs.replace(wanted, {'model.attention': 'xla'})
  assert 'attention' in capsys.readouterr().out
  batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), compiled.batch)
  batch = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), batch, compiled.batch)
  _, metrics = compiled.train_step(compiled.init(), batch)
  assert np.isfinite(metrics['loss'])


# What a deterministic run on GPUs asks of XLA.


def _gpu_options(**options):
  mesh = mock.Mock(devices=np.array([SimpleNamespace(platform='gpu')]))
  return mesh_lib.compiler_options(mesh, **options)


def test_a_deterministic_run_takes_the_kernels_that_it_took_before(tmp_path):
  kernels = tmp_path / 'kernels.txt'
  assert _gpu_options(kernels=kernels) == {}
  first = _gpu_options(deterministic=True, kernels=kernels)
  assert first.pop('xla_gpu_exclude_nondeterministic_ops') is True
  (new,) = first.values()
  pathlib.Path(new).write_text('of both steps')  # by XLA
  config = _resolve(knobs.replace(_config(), {'train.deterministic': True}))
  compiled = program_lib.build(config, mesh_lib.make_mesh(config)).compile(kernels)
  assert compiled.train_step.memory_analysis() is not None
  assert [path.name for path in tmp_path.iterdir()] == ['kernels.txt']
  again = _gpu_options(deterministic=True, kernels=kernels)
  assert str(kernels) in again.values() and kernels.read_text() == 'of both steps'
