"""What eight devices hold and exchange in a step, read from the compiled program.

Shapes in names as in the model: B batch, L length, D width, F hidden width, V vocabulary.
"""

import functools
import math
import pathlib
import runpy

import jax
import pytest

from gpt_jax import config as config_lib
from gpt_jax import knobs, models
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import program as program_lib
from tests.parallel import hlo

pytestmark = pytest.mark.skipif(
  jax.device_count() != 8, reason='needs 8 devices; see launch/test.sh'
)

# 12 heads don't divide into 8.
B, L, D, V, LAYERS, FLOAT = 40, 24, 96, 640, 2, 4
MODEL = config_lib.ModelConfig(
  n_layer=LAYERS, n_head=12, n_embd=D, block_size=L, vocab_size=V, attention='xla'
)
KERNELS = LAYERS * 12 * D * D
N = models.parameter_count(MODEL)


@functools.cache
def _compiled(data, fsdp, tensor):
  config = config_lib.Config(
    model=MODEL,
    train=config_lib.TrainConfig(batch_size=B),
    mesh=config_lib.MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
  )
  program = program_lib.build(config, mesh_lib.make_mesh(config))
  return program, program.train_step.lower(program.state, program.batch).compile()


def _collectives(*axes):
  found = hlo.collectives(_compiled(*axes)[1].as_text())
  return {kind: size // FLOAT for kind, size in found.items()}


def test_data_parallel_devices_exchange_each_gradient_once():
  # XLA for CPUs reduces the two gradients of the tied table before it adds them; others after.
  assert _collectives(8, 1, 1) == {'all-reduce': N + V * D}


def test_fsdp_gathers_parameters_and_reduces_their_gradients():
  assert _collectives(1, 8, 1) == {
    # Once for both passes, since a CPU has the memory. Only the output layer needs the table of
    # tokens, whose rows are looked up in shards; for that, the ids are gathered.
    'all-gather': KERNELS + V * D + L * D + B * L,
    # XLA for CPUs reduces a gradient whole before a device takes its shard.
    'all-reduce': N,
    # The rows looked up, from shards of the width to shards of the batch, and their gradients.
    'all-to-all': 2 * (B // 8) * L * D,
  }


def test_tensor_parallel_devices_exchange_activations_four_times_a_layer():
  rows = B // 2 * L
  # After two products of a layer, forward and backward (Shoeybi et al. 2019, section 3); the
  # tokens' rows, and the gradient of the last hidden states.
  activations = (4 * LAYERS + 2) * rows * D
  softmax = 3 * rows  # its maximum and sum, and the targets' logits
  # Between the two groups, in shards: matrices (the table twice, as above), biases of c_attn and
  # c_fc; whole: other biases and LayerNorms.
  gradients = (KERNELS + 2 * V * D + 7 * LAYERS * D) // 4 + L * D + (6 * LAYERS + 2) * D
  assert _collectives(2, 1, 4) == {
    'all-reduce': activations + softmax + gradients,
    # The shards of c_attn are a quarter of q, k and v together: whole heads need all, both ways.
    'all-gather': LAYERS * 2 * 3 * (D * D + D),
  }


@pytest.mark.parametrize('axes', [(8, 1, 1), (1, 8, 1), (2, 4, 1), (2, 1, 4), (2, 2, 2)], ids=str)
def test_no_device_holds_sequences_or_logits_of_others(axes):
  data, fsdp, tensor = axes
  rows, lookup = B // (data * fsdp), (B // data, L, D // fsdp)
  for kind, shape in hlo.arrays(_compiled(*axes)[1].as_text()):
    # Of tokens, a device looks up its shard of the width for all sequences that share the table.
    is_lookup = shape[-1:] == lookup[-1:] and math.prod(shape) == math.prod(lookup)
    if kind == 'f32' and len(shape) > 1 and not is_lookup:
      for whole in {B, B // data} - {rows}:
        assert shape[:2] != (whole, L) and shape[0] != whole * L, shape
    if V in shape and tensor > 1:
      assert not {rows, L, rows * L} & set(shape), shape


def test_temporaries_of_fsdp_are_those_of_copies_and_what_is_gathered():
  sharded, copied = (
    _compiled(*axes)[1].memory_analysis().temp_size_in_bytes for axes in [(1, 8, 1), (8, 1, 1)]
  )
  assert sharded <= copied + FLOAT * (KERNELS + V * D)


def test_fsdp_shards_the_state_of_gpt2_evenly():
  path = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'gpt2_small.py'
  changes = {'mesh.fsdp': 8, 'model.vocab_size': 50257, 'model.attention': 'xla'}
  config = knobs.replace(runpy.run_path(str(path))['get_config'](), changes)
  program = program_lib.build(config, mesh_lib.make_mesh(config))
  whole = 3 * FLOAT * models.parameter_count(config.model)  # with Adam's moments
  assert mesh_lib.per_device_bytes(program.state) == pytest.approx(whole / 8, rel=0.02)
