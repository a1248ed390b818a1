"""A classifier's loss is that of its documents, each by itself."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import classifier
from gpt_jax.training import objectives
from tests import random_params
from tests.models import tiny

IGNORED = batch_lib.IGNORED


# Classification. Documents in rows, with their class at their last token.

ROWS = [
  [(1, [3, 4, 5]), (0, [6, 7]), (2, [8])],
  [(0, [3, 4, 5, 9, 2, 1, 0])],
]


def _batch():
  inputs, targets, segments = np.zeros((3, 2, 8), np.int32)
  targets[:] = IGNORED
  for row, documents in enumerate(ROWS):
    begin = 0
    for number, (label, ids) in enumerate(documents, 1):
      end = begin + len(ids)
      inputs[row, begin:end], segments[row, begin:end] = ids, number
      targets[row, end - 1] = label
      begin = end
  return batch_lib.Batch(inputs, targets, segments)


@pytest.mark.parametrize('pooling', ['mean', 'last'])
@pytest.mark.parametrize('kind', ['gpt', 'lstm', 'encoder'])
def test_a_document_is_classified_by_its_own_states(kind, pooling):
  config = tiny.make_config(classes='a,b,c', kind=kind, pooling=pooling, tie_embeddings=False)
  model, params = models.make(config), random_params.make(config, std=0.5)
  hidden = jax.jit(lambda tokens_BL: model.apply({'params': params}, tokens_BL, method='hidden')[0])
  total, confusion = 0.0, np.zeros((3, 3), int)
  for label, ids in (document for row in ROWS for document in row):
    hidden_BLD = np.asarray(hidden(np.array([ids])))
    pooled_D = hidden_BLD[0].mean(0) if pooling == 'mean' else hidden_BLD[0, -1]
    score = params[classifier.NAME]
    logits_C = np.asarray(pooled_D @ score['kernel'] + score['bias'], np.float64)
    total += np.log(np.exp(logits_C).sum()) - logits_C[label]
    confusion[label, logits_C.argmax()] += 1
  sums = jax.jit(lambda params, part: objectives.evaluate(model, params, part))(params, _batch())
  assert float(sums['loss']) == pytest.approx(total, rel=1e-4)
  assert int(sums['targets']) == 4
  np.testing.assert_array_equal(sums['confusion'], confusion)
  key = jax.random.key(0)
  trained = jax.jit(functools.partial(objectives.loss, model))(params, _batch(), key)
  assert float(trained) == pytest.approx(total, rel=1e-4)


def test_measures_are_those_of_the_confusion():
  confusion = np.array([[8, 2], [4, 6]])
  found = objectives.measures({'loss': 40.0, 'targets': 20, 'confusion': confusion})
  f1 = (2 * 8 / (2 * 8 + 2 + 4) + 2 * 6 / (2 * 6 + 2 + 4)) / 2
  expected = {'loss': 2.0, 'accuracy': 0.7, 'f1': f1, 'error': 0.3}
  assert found == pytest.approx(expected)
  # A class that is never there and never predicted doesn't divide by zero.
  none = objectives.measures({'loss': 0.0, 'targets': 3, 'confusion': np.diag([3, 0])})
  assert none['accuracy'] == 1 and none['f1'] == 0.5


@pytest.mark.parametrize(
  ('options', 'trained'),
  [
    ({}, 'wte wpe h_0 h_1 ln_f score'),
    ({'freeze_body': True}, 'score'),
    ({'lora_rank': 2}, 'h_0 h_1 score'),
    ({'lora_rank': 2, 'freeze_body': True}, 'h_0 h_1 score'),
    ({'kind': 'lstm', 'clusters': '9'}, 'wte h_0 h_1 score'),
  ],
  ids=str,
)
def test_what_is_trained_of_a_classifier(options, trained):
  config = tiny.make_config(classes='a,b', tie_embeddings=False, **options)
  parts = models.split_trained(config, models.abstract_params(config))
  assert set(parts[0]) == set(trained.split()) and 'lm_head' in parts[1]
  if config.lora_rank:
    assert all(path.endswith(('lora_a', 'lora_b')) for path in tiny.by_path(parts[0]['h_0']))
