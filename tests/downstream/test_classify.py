"""A text gets the probabilities that its document has in training, whatever its length."""

import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from gpt_jax import models
from gpt_jax.data.batches import batch
from gpt_jax.data.tokenizers import char
from gpt_jax.downstream import classify
from gpt_jax.training import objectives
from tests import raised
from tests.generation import tiny

LETTERS = tiny.LETTERS[:-2]  # the ids of the last two stand for bos and eos
_evaluate = jax.jit(objectives.evaluate, static_argnums=0)
TEXTS = ['bad', 'a' * 40, '.', 'hello.worlds', 'hello.world', 'zyx' * 13]


@functools.cache
def _model(special_tokens: tuple[str, ...] = ('bos', 'eos'), **changes: Any) -> Any:
  model = tiny.model(classes='neg,so,pos', **changes)
  return dataclasses.replace(model, tokenizer=char.CharTokenizer(LETTERS, special_tokens))


@pytest.mark.parametrize('kind', ['gpt', 'lstm'])
@pytest.mark.parametrize('pooling', ['mean', 'last'])
@pytest.mark.parametrize('special_tokens', [(), ('bos', 'eos')])
def test_probabilities_are_those_of_training(kind, pooling, special_tokens):
  options = {'kind': kind, 'tie_embeddings': kind == 'gpt', 'lstm_width': 16}
  model = _model(special_tokens, pooling=pooling, **options)
  tokenizer, size = model.tokenizer, model.config.block_size
  found = classify.classify(model, TEXTS)
  for text, prediction in zip(TEXTS, found, strict=True):
    document = [tokenizer.bos_id, *tokenizer.encode(text).tolist(), tokenizer.eos_id]
    document = [i for i in document if i is not None]
    place_L = np.arange(-(-len(document) // size) * size)  # of few lengths
    ids_L = np.zeros_like(place_L)
    ids_L[: len(document)] = document
    segments_L = np.where(place_L < len(document), 1 + place_L // size, 0)
    for label, name in enumerate(model.config.class_names):
      targets_L = np.where(place_L == len(document) - 1, label, batch.IGNORED)
      rows = batch.Batch(ids_L[None], targets_L[None], segments_L[None])
      loss = _evaluate(models.make(model.config), model.params, rows)['loss']
      assert prediction.probabilities[name] == pytest.approx(np.exp(-loss), abs=1e-5)
    assert prediction.tokens == len(document)
    assert prediction.probabilities[prediction.label] == max(prediction.probabilities.values())
  assert len({prediction.label for prediction in found}) > 1


def test_no_texts_have_no_classes_and_progress_comes_to_its_end():
  report = mock.Mock()
  assert classify.classify(_model(), [], progress=report) == []
  classify.classify(_model(), TEXTS, progress=report)
  _, done, total = report.call_args.args
  assert done == total


@pytest.mark.parametrize(
  ('model', 'texts', 'keys'),
  [
    (tiny.model, ['bad'], ['model']),
    (lambda: dataclasses.replace(_model(), tokenizer=None), ['bad'], ['model']),
    (_model, ['?', 'bad', '\n\n', ''], ['texts[0]', 'texts[2]', 'texts[3]']),
  ],
)
def test_what_cannot_be_classified_is_named(model, texts, keys):
  error = raised.user_error(classify.classify, model(), texts)
  assert [each.key for each in error.all] == keys
