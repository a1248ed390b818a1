"""What a model computes on its way to the next token, read without changing its code.

Shapes in names: N layers, H heads, L positions, M positions attended to, K head width, D width,
V vocabulary.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import errors, models
from gpt_jax.generation import language_model, options, processors, prompts, sampling

_CANDIDATES = 5


class Guess(NamedTuple):
  """What a model expects at one position; tokens as `spell` gives them."""

  candidates: list[tuple[Any, float]]  # the likeliest tokens with their probabilities
  follows: Any = None  # the token that follows; None if there is none
  probability: float = 0.0  # of that token
  rank: int = 0  # of that token among all, from 1; of equally likely ones, the last


def guesses(
  logits_LV: jax.Array,
  follows: Sequence[int | None],
  spell: Callable[[int], Any],
  *,
  temperature: float = 1.0,
  top_k: int = 0,
) -> list[Guess]:
  """Returns a guess for each position, with the probabilities that sampling has."""
  sharp_LV = processors.temperature(logits_LV, temperature)
  choices = sampling.Choices(*(processors.top_k(sharp_LV, top_k) if top_k else (sharp_LV, None)))
  p_LV = np.asarray(choices.probabilities(logits_LV.shape[-1]))
  best = np.asarray(processors.top_k(logits_LV, _CANDIDATES)[1]).tolist()
  found = []
  for ids, logits_V, p_V, token in zip(best, np.asarray(logits_LV), p_LV, follows, strict=True):
    guess = Guess([(spell(i), float(p_V[i])) for i in ids])
    if token is not None:
      rank = int((logits_V >= logits_V[token]).sum())
      guess = Guess(guess.candidates, spell(token), float(p_V[token]), rank)
    found.append(guess)
  return found


def fillings(
  model: language_model.LanguageModel, text: str, spell: Callable[[int], Any]
) -> list[Guess]:
  """Returns a guess for each `MASK` in `text`; raises `UserError` if the model can't make it."""
  mask_id = model.tokenizer.mask_id if model.tokenizer else None
  if model.config.kind != 'encoder' or model.config.classes or not model.tokenizer or not mask_id:
    fix = 'train one: `task=masked`, `model.kind=encoder`, `data.special_tokens=mask`'
    raise errors.UserError('model', 'has not learned to guess masked tokens', fix)
  if prompts.MASK not in text:
    raise errors.UserError('fill', f'{text!r} has no {prompts.MASK} to fill')
  ids = prompts.encode_masked(model.tokenizer, text, mask_id)
  places = [i for i, token in enumerate(ids) if token == mask_id]
  try:
    logits_LV = model.logits([ids])[0, np.array(places)]
  except errors.UserError as e:
    raise e.at('fill') from e
  return guesses(logits_LV, [None] * len(places), spell)


def generation(
  model: language_model.LanguageModel,
  ids: list[int],
  request: options.Request,
  spell: Callable[[int], Any],
) -> list[Guess]:
  """Continues `ids`, at most to the end of the context, and returns a guess for each new token."""
  settings, room = request.settings, model.config.block_size + 1 - len(ids)
  fits = dataclasses.replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
  (sample,) = model.generate([ids], request=dataclasses.replace(request, settings=fits))
  new: list[Any] = sample.tokens
  if sample.ended == 'eos' and model.tokenizer:
    new = [*new, model.tokenizer.eos_id]
  logits_LV = model.logits([ids + new[:-1]])[0, len(ids) - 1 :]
  return guesses(logits_LV, new, spell, temperature=settings.temperature, top_k=settings.top_k)


def parameters(params: Any) -> list[tuple[str, str, int, int, int]]:
  """Returns name, shape, copies, values and bytes of arrays; the copies of h_0, h_1 … are h_*."""
  copies: dict[tuple[str, str], list[jax.Array]] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    name = re.sub(r'^h_\d+', 'h_*', jax.tree_util.keystr(path, simple=True, separator='/'))
    copies.setdefault((name, ' × '.join(map(str, x.shape))), []).append(x)
  return [
    (*key, len(x), sum(a.size for a in x), sum(a.nbytes for a in x)) for key, x in copies.items()
  ]


def untrained(model: language_model.LanguageModel) -> language_model.LanguageModel:
  """Returns the model with random parameters, such as training starts from."""
  return dataclasses.replace(model, params=models.init(model.config, jax.random.key(0)))


def attention(model: language_model.LanguageModel, ids: list[int]) -> np.ndarray:
  """Returns the weight that each position gives to each, float32 (N, H, L, M), 0 to later ones."""
  found, *_ = _captured(model, ids)
  seen_LM, weights = np.tri(len(ids), dtype=bool) | (model.config.kind == 'encoder'), []
  for i in range(model.config.n_layer):
    qkv = found[f'h_{i}']['attn']['c_attn']['__call__'][0][0].astype(jnp.float32)
    scores_HLM = jnp.einsum('LHK,MHK->HLM', qkv[:, 0], qkv[:, 1]) * qkv.shape[-1] ** -0.5
    weights.append(jax.nn.softmax(jnp.where(seen_LM, scores_HLM, -jnp.inf)))
  return np.asarray(jnp.stack(weights))


def lens(model: language_model.LanguageModel, ids: list[int]) -> Iterator[jax.Array]:
  """Yields logits_LV as if the model ended after its embeddings, and after each of its blocks.

  The last are the model's own. nostalgebraist 2020, "interpreting GPT: the logit lens".
  """
  found, module, params = _captured(model, ids)
  read = jax.jit(functools.partial(module.apply, method=lambda gpt, x: gpt.logits(gpt.ln_f(x))))
  for name in ('Dropout_0', *(f'h_{i}' for i in range(model.config.n_layer))):
    x_BLD = jax.tree.leaves(found[name]['__call__'])[0]  # a block returns its cache too
    yield read({'params': params}, x_BLD)[0, :, : model.config.vocab_size]


def _captured(model: language_model.LanguageModel, ids: list[int]) -> tuple[Any, Any, Any]:
  """The outputs of parts of the model, its layers unrolled; that module and its parameters."""
  module = models.make(dataclasses.replace(model.config, scan_layers=False))
  params = dict(model.params)
  for i in range(model.config.n_layer if model.config.scan_layers else 0):
    params[f'h_{i}'] = jax.tree.map(lambda x, i=i: x[i], params['h'])

  def wanted(part: Any, method: str) -> bool:
    return method == '__call__' and (part.name == 'c_attn' or len(part.path) == 1)

  capture: Any = {'capture_intermediates': wanted, 'mutable': 'intermediates'}
  apply = jax.jit(functools.partial(module.apply, **capture))
  return apply({'params': params}, np.array([ids]))[1]['intermediates'], module, params
