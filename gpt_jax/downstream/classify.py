"""Texts to classes, by a classifier that `train` made of a language model.

Shapes in names: B texts, D width of the hidden states, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt_jax import errors, progress
from gpt_jax.data import tokenizers
from gpt_jax.generation import language_model, prompts
from gpt_jax.models import classifier


class Prediction(NamedTuple):
  """What a classifier says of a text."""

  label: str  # the most likely class
  probabilities: dict[str, float]  # of each class
  tokens: int  # of the text, with bos and eos: more than `block_size` are read in windows


def classify(
  model: language_model.LanguageModel,
  texts: str | Sequence[str],
  *,
  progress: progress.Report | None = None,
) -> list[Prediction]:
  """Returns the class of each text, which may be of any length.

  Raises `UserError` if the model is no classifier or has no tokenizer, and, at `texts[i]`, for
  texts that are empty or that it can't read.
  """
  names = model.config.class_names
  if not names:
    fix = 'train one that starts from it: `task=classify`, `data.label_field`, `init_from`'
    raise errors.UserError('model', 'is a language model, which knows no classes', fix)
  if model.tokenizer is None:
    raise errors.UserError('model', 'has no tokenizer', 'put its tokenizer.json there')
  documents, found = [], []
  for i, text in enumerate(prompts.as_list(texts, key='texts')):
    try:
      documents.append(_document(model.tokenizer, text))
    except errors.UserError as e:
      found.append(e.at(f'texts[{i}]'))
  errors.raise_all(found)
  pooled_BD = model.embed(documents, pooling=model.config.pooling, progress=progress)
  layer = {name: np.asarray(x, np.float32) for name, x in model.params[classifier.NAME].items()}
  logits_BC = (pooled_BD @ layer['kernel'] + layer['bias']).astype(np.float64)
  chances_BC = np.exp(logits_BC - logits_BC.max(1, keepdims=True))
  chances_BC /= chances_BC.sum(1, keepdims=True)
  return [
    Prediction(names[chances.argmax()], dict(zip(names, chances.tolist(), strict=True)), len(ids))
    for chances, ids in zip(chances_BC, documents, strict=True)
  ]


def _document(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
  """The tokens of a text as it is in a token store, with bos and eos."""
  ids = tokenizer.encode(text).tolist()
  if not text.strip():
    raise errors.UserError('text', 'is empty')
  bos, eos = ([] if i is None else [i] for i in (tokenizer.bos_id, tokenizer.eos_id))
  return [*bos, *ids, *eos]
