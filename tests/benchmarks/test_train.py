"""Random tokens are the same for a seed, and of the config's task and vocabulary."""

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import knobs
from gpt_jax.benchmarks import train
from gpt_jax.data.batches import batch

_CONFIG = config_lib.Config(model=config_lib.ModelConfig(vocab_size=9, block_size=8, classes='a,b'))


def _rows(count=6, **values):
  values = {key.replace('__', '.'): value for key, value in values.items()}
  return train.random_rows(knobs.replace(_CONFIG, values))(np.arange(count))


def test_random_rows_are_a_function_of_the_seed_and_their_numbers():
  rows = _rows()
  assert rows.segments is None and rows.inputs.shape == (6, 8)
  np.testing.assert_array_equal(rows.inputs, _rows().inputs)
  np.testing.assert_array_equal(rows.inputs[:3], _rows(3).inputs)
  assert (rows.inputs != _rows(data__seed=1).inputs).any()
  assert len(np.unique(rows.inputs, axis=0)) == 6
  np.testing.assert_array_equal(rows.inputs[:, 1:], rows.targets[:, :-1])
  assert _rows(1000).inputs.min() == 0 and _rows(1000).inputs.max() == 8


def test_rows_of_documents_have_a_segment_and_those_of_a_classifier_a_class():
  packed = _rows(data__chunks='packed', data__row_length=12)
  assert packed.inputs.shape == packed.segments.shape == (6, 12) and (packed.segments == 1).all()
  classes = _rows(task='classify').targets
  assert classes[:, -1].tolist() == [0, 1, 0, 1, 0, 1]
  assert (classes[:, :-1] == batch.IGNORED).all()
