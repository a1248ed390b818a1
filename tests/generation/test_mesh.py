"""A model that several devices share generates and measures as on one."""

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.evaluation import scoring
from gpt_jax.generation import language_model
from tests import tiny_run

TEXT = 'the sea, the sea and the sand; a wave and then a wave. ' * 20


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return tiny_run.train(tmp_path_factory.mktemp('run'), TEXT, block_size=16, steps=3)


def _scores(model):
  rows = [scoring.Row(np.arange(2 + i) % model.config.vocab_size, 1) for i in range(6)]
  scorer = scoring.Scorer(model, batch_size=4)
  return {number: scores.log_probs for number, scores in scorer.score(rows)}


@pytest.mark.parametrize('axes', [(1, 1, 2), (-1, 2, 1)], ids=str)
def test_a_shared_model_computes_what_a_single_one_does(run, axes):
  single = language_model.load(run)
  shared = language_model.load(run, mesh=config_lib.MeshConfig(*axes))
  kernel = shared.params['h_0']['mlp']['c_fc']['kernel']
  assert len(kernel.sharding.device_set) == 2 and not kernel.is_fully_replicated
  wanted, found = (
    model.generate(['the ', 'a wave'], max_new_tokens=10, temperature=0)
    for model in (single, shared)
  )
  assert [sample.text for sample in found] == [sample.text for sample in wanted]
  _assert_same_scores(shared, single)


def test_batches_are_split_among_copies(run):
  _assert_same_scores(
    language_model.load(run, mesh=config_lib.MeshConfig(data=2)), language_model.load(run)
  )


def _assert_same_scores(one, other):
  wanted = _scores(other)
  for number, log_probs in _scores(one).items():
    np.testing.assert_allclose(log_probs, wanted[number], rtol=1e-5)


@pytest.mark.parametrize(
  'axes, key', [((1, 1, 4), 'mesh.data'), ((3, 1, 1), 'mesh.data'), ((1, 3, 1), 'mesh.data')]
)
def test_the_mesh_must_fit_the_devices(run, axes, key):
  with pytest.raises(errors.UserError) as e:
    language_model.load(run, mesh=config_lib.MeshConfig(*axes))
  assert e.value.key == key


def test_a_batch_must_be_divisible_among_the_devices(run):
  model = language_model.load(run, mesh=config_lib.MeshConfig(data=2))
  assert jax.device_count() == 2
  with pytest.raises(errors.UserError) as e:
    scoring.Scorer(model, batch_size=3)
  assert e.value.key == 'batch_size'
