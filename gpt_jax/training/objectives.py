"""What training minimizes: pure functions of a model, its parameters and a batch.

A classifier is a language model with other logits: those of the classes. A document has one target,
its class, at its last token, so one cross-entropy serves both.

Shapes in names: B batch, L length, D width of the hidden states, C classes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import classifier, output

Sums = dict[str, jax.Array]


def loss(model: models.Model, params: Any, part: batch_lib.Batch, key: jax.Array) -> jax.Array:
  """Returns the sum of the targets' losses in nats; `key` decides on dropout."""
  return _loss(model, params, part, deterministic=False, rngs={'dropout': key})[0]


def evaluate(model: models.Model, params: Any, part: batch_lib.Batch) -> Sums:
  """Returns sums over a batch, for `measures`: `loss`, `targets`, and `confusion` of a classifier.

  `confusion` is int32 (C, C): documents by their class, and by the class that is most likely.
  """
  total, logits_BLC = _loss(model, params, part)
  sums = {'loss': total, 'targets': num_targets(part.targets)}
  if logits_BLC is not None:
    C = logits_BLC.shape[-1]
    pairs_BL = part.targets * C + logits_BLC.argmax(-1)
    pairs_BL = jnp.where(part.targets == batch_lib.IGNORED, C * C, pairs_BL)  # beyond: dropped
    sums['confusion'] = jnp.bincount(pairs_BL.ravel(), length=C * C).reshape(C, C)
  return sums


def measures(sums: Any) -> dict[str, float]:
  """Returns what sums as of `evaluate`, of all batches together, say.

  A language model has `loss` and `perplexity`; a classifier `loss`, `accuracy`, `f1` (the mean over
  the classes), and `error`, the share of documents that are classified wrongly.
  """
  mean = float(sums['loss']) / max(1, int(sums['targets']))
  if 'confusion' not in sums:
    return {'loss': mean, 'perplexity': math.exp(min(mean, 700.0))}
  table = sums['confusion']
  right = table.diagonal()
  accuracy = float(right.sum() / max(1, table.sum()))
  f1 = float((2 * right / (table.sum(0) + table.sum(1)).clip(1)).mean())
  return {'loss': mean, 'accuracy': accuracy, 'f1': f1, 'error': 1 - accuracy}


def num_targets(targets: jax.Array) -> jax.Array:
  """Counts the targets that aren't IGNORED, int32."""
  return (targets != batch_lib.IGNORED).sum(dtype=jnp.int32)


def _loss(
  model: models.Model, params: Any, part: batch_lib.Batch, **options: Any
) -> tuple[jax.Array, jax.Array | None]:
  """The sum of the losses and, of a classifier, the logits."""
  variables = {'params': params}
  hidden: Any = model.apply(
    variables, part.inputs, segments_BL=part.segments, method='hidden', **options
  )
  hidden_BLD, _ = hidden
  if not model.config.classes:
    total: Any = model.apply(variables, hidden_BLD, part.targets, method='loss')
    return total, None
  # A document ends where it has a target; the next one begins there.
  ends_BL = part.targets != batch_lib.IGNORED
  starts_BL = jnp.roll(ends_BL, 1, axis=1).at[:, 0].set(True)
  score = params[classifier.NAME]
  logits_BLC = classifier.logits(model.config, score, hidden_BLD, starts_BL)
  return output.cross_entropy(logits_BLC, part.targets), logits_BLC
