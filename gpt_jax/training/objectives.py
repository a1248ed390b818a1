"""What training minimizes: pure functions of a model, its parameters and a batch.

A classifier is a language model with other logits: those of the classes. A document has one target,
its class, at its last token, so one cross-entropy serves both. An encoder that guesses masked
tokens has its targets where they are.

Shapes in names: B batch, L length, K masked tokens of a row, D width of the hidden states,
C classes, V vocabulary (padded).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import models
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.models import classifier, output

Sums = dict[str, jax.Array]


def prepare(
  config: config_lib.ModelConfig, batch: batch_lib.Batch, key: jax.Array
) -> batch_lib.Batch:
  """Returns a batch as the model sees it: with `config.mask_id`, some tokens masked, else as it is.

  So is one with sources, which lack spans already.
  Of the tokens of each row 15 %, rounded up, are targets: 80 % of them are masked, 10 % become any
  token, 10 % stay (Devlin et al. 2019, "BERT", §3.1). `key` decides on which.
  """
  if config.mask_id < 0 or batch.sources is not None:
    return batch
  inputs, is_token = batch.inputs, batch.targets != batch_lib.IGNORED
  keys = jax.random.split(key, 3)
  lot = jnp.where(is_token, jax.random.uniform(keys[0], inputs.shape), 2)
  chosen = lot.argsort(-1).argsort(-1) < _share(is_token.sum(-1, keepdims=True))
  how = jax.random.uniform(keys[1], inputs.shape)
  other = jnp.where(
    how < 0.9, jax.random.randint(keys[2], inputs.shape, 0, config.vocab_size), inputs
  )
  return batch._replace(
    inputs=jnp.where(chosen, jnp.where(how < 0.8, config.mask_id, other), inputs),
    targets=jnp.where(chosen, inputs, batch_lib.IGNORED),
  )


def _share(n: Any) -> Any:
  """How many of `n` tokens are targets."""
  return (15 * n + 99) // 100


def loss(model: models.Model, params: Any, part: batch_lib.Batch, key: jax.Array) -> jax.Array:
  """Returns the sum of the targets' losses in nats; `key` decides on dropout."""
  return _loss(model, params, part, deterministic=False, rngs={'dropout': key})[0]


def evaluate(model: models.Model, params: Any, part: batch_lib.Batch) -> Sums:
  """Returns sums over a batch, for `measures`: `loss`, `targets`, and `confusion` of a classifier.

  `confusion` is int32 (C, C): documents by their class, and by the class that is most likely. With
  masks, always the same ones: of what is masked `right`, the targets that are most likely, and
  `counts`, int32 (V,); so it is for spans, without their masks and eos.
  With sources, else: `rows`, and `exact`, those whose targets are all most likely.
  """
  part = prepare(model.config, part, jax.random.key(0))
  if model.config.mask_id >= 0 or part.sources is not None:
    return _guessed(model, params, part)
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

  A language model has `loss` and `perplexity`; with masks also `accuracy`, and `unigram`, that of
  guessing the most frequent token each time, both of what is behind a mask; in spans, after the
  right tokens before it. With other sources there is `exact_match`, the share of responses that
  greedy decoding gives. A classifier has `loss`, `accuracy`, `f1` (the mean over the classes), and
  `error`, the share of documents that are classified wrongly.
  """
  mean = float(sums['loss']) / max(1, int(sums['targets']))
  if 'confusion' not in sums:
    found = {'loss': mean, 'perplexity': math.exp(min(mean, 700.0))}
    if 'counts' in sums:
      right = {'accuracy': sums['right'], 'unigram': sums['counts'].max()}
      found |= {name: float(n / max(1, sums['counts'].sum())) for name, n in right.items()}
    if 'exact' in sums:
      found['exact_match'] = float(sums['exact'] / max(1, sums['rows']))
    return found
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
  hidden_BLD = _hidden(model, params, part, **options)
  if not model.config.classes:
    if model.config.mask_id >= 0 and part.sources is None:
      hidden_BLD, part = _guessed_alone(hidden_BLD, part)
    total: Any = model.apply({'params': params}, hidden_BLD, part.targets, method='loss')
    return total, None
  # A document ends where it has a target; the next one begins there.
  ends_BL = part.targets != batch_lib.IGNORED
  starts_BL = jnp.roll(ends_BL, 1, axis=1).at[:, 0].set(True)
  score = params[classifier.NAME]
  logits_BLC = classifier.logits(model.config, score, hidden_BLD, starts_BL)
  return output.cross_entropy(logits_BLC, part.targets), logits_BLC


def _hidden(model: models.Model, params: Any, part: batch_lib.Batch, **options: Any) -> jax.Array:
  if part.sources is not None:
    options['sources_BM'] = part.sources
  hidden: Any = model.apply(
    {'params': params}, part.inputs, segments_BL=part.segments, method='hidden', **options
  )
  return hidden[0]


def _guessed_alone(
  hidden_BLD: jax.Array, part: batch_lib.Batch
) -> tuple[jax.Array, batch_lib.Batch]:
  """States and tokens where there are targets alone: the output layer can take most of the time."""
  is_target_BL = (part.targets != batch_lib.IGNORED).astype(jnp.int32)
  _, place_BK = jax.lax.top_k(is_target_BL, _share(is_target_BL.shape[1]))
  hidden_BKD = jnp.take_along_axis(hidden_BLD, place_BK[..., None], axis=1)
  return hidden_BKD, jax.tree.map(lambda x_BL: jnp.take_along_axis(x_BL, place_BK, axis=1), part)


def _guessed(model: models.Model, params: Any, part: batch_lib.Batch) -> Sums:
  """What a model gets right of masked tokens, of spans, or of whole responses."""
  hidden_BLD, mask_id = _hidden(model, params, part), model.config.mask_id
  if mask_id >= 0 and part.sources is None:
    hidden_BLD, part = _guessed_alone(hidden_BLD, part)
  logits_BLV: Any = model.apply({'params': params}, hidden_BLD, method='logits')
  targets_BL = part.targets
  is_target_BL, V = targets_BL != batch_lib.IGNORED, logits_BLV.shape[-1]
  right_BL = logits_BLV.argmax(-1) == targets_BL
  sums = {'loss': output.cross_entropy(logits_BLV, targets_BL), 'targets': num_targets(targets_BL)}
  if mask_id >= 0:
    is_masked_BL = is_target_BL & (part.inputs == mask_id)  # others may be there to see
    if part.sources is not None:
      is_last_BL = ~jnp.pad(is_target_BL[:, 1:], ((0, 0), (0, 1)))  # eos
      is_masked_BL = is_target_BL & (targets_BL != mask_id) & ~is_last_BL
    sums['right'] = (right_BL & is_masked_BL).sum(dtype=jnp.int32)
    counted_BL = jnp.where(is_masked_BL, targets_BL, V)  # beyond: dropped
    return sums | {'counts': jnp.bincount(counted_BL.ravel(), length=V)}
  # If each token is the most likely one after the right ones, greedy decoding gives them all.
  is_row_B = is_target_BL.any(1)
  sums['rows'] = is_row_B.sum(dtype=jnp.int32)
  return sums | {'exact': (is_row_B & (right_BL | ~is_target_BL).all(1)).sum(dtype=jnp.int32)}
