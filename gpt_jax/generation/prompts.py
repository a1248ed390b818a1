"""Prompts, as text or token ids: encoded and checked, all problems reported together."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import tokenizers

Prompt = str | Sequence[int] | np.ndarray
MASK = '[MASK]'  # in a text, where tokens are to be guessed


def encode(
  config: config_lib.ModelConfig,
  tokenizer: tokenizers.Tokenizer | None,
  prompt: Prompt,
  *,
  key: str = 'prompt',
) -> list[int]:
  """Returns the token ids of a prompt, at least one; raises `UserError` at `key` if it is invalid.

  An empty prompt is the start of a text: bos, else eos, else a newline, else token 0.
  """
  if isinstance(prompt, str):
    if tokenizer is None:
      raise errors.UserError(key, 'the model has no tokenizer', 'give token ids, not text')
    try:
      prompt = encode_masked(tokenizer, prompt, config.mask_id)
    except errors.UserError as e:
      raise e.at(key) from e
    if tokenizer.bos_id is not None and config.kind != 'encoder_decoder':
      prompt = [tokenizer.bos_id, *prompt]
  ids_L = as_array(prompt)
  if ids_L.ndim != 1:
    raise errors.UserError(key, f'{prompt!r} must be text or a list of token ids')
  if not ids_L.size:
    return [start(tokenizer)]
  check(config, ids_L, key=key)
  return ids_L.tolist()


def encode_masked(tokenizer: tokenizers.Tokenizer, text: str, mask_id: int) -> list[int]:
  """Returns the tokens of a text, with `mask_id` for each `MASK` in it, unless that is below 0."""
  ids: list[int] = []
  for i, part in enumerate(text.split(MASK) if mask_id >= 0 else [text]):
    ids += [mask_id] * bool(i) + tokenizer.encode(part).tolist()
  return ids


def decode_masked(tokenizer: tokenizers.Tokenizer, ids: Sequence[int], *, mask_id: int) -> str:
  """Returns the text of tokens, with a `MASK` for each `mask_id`."""
  parts = itertools.groupby(ids, lambda token: token == mask_id)
  return ''.join(MASK * len([*of]) if hidden else tokenizer.decode([*of]) for hidden, of in parts)


def encode_all(
  config: config_lib.ModelConfig,
  tokenizer: tokenizers.Tokenizer | None,
  prompts: str | Sequence[Prompt],
  *,
  key: str = 'prompts',
) -> list[list[int]]:
  """Returns the token ids of all prompts; raises `UserError` at `key[i]` for invalid ones."""
  ids, found = [], []
  known: dict[str | int, list[int]] = {}  # a repeated text is encoded once
  for i, prompt in enumerate(as_list(prompts, key=key)):
    name = prompt if isinstance(prompt, str) else i
    try:
      if name not in known:
        known[name] = encode(config, tokenizer, prompt, key=f'{key}[{i}]')
      ids.append(known[name])
    except errors.UserError as e:
      found.append(e)
  errors.raise_all(found)
  return ids


def as_list(texts: Any, *, key: str) -> Iterable[Any]:
  """Returns texts or lists of token ids; one text is a list of one; raises `UserError` at `key`."""
  if isinstance(texts, str):
    return [texts]
  if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
    problem = f'{texts!r:.80} must be a list, of texts or of lists of token ids'
    raise errors.UserError(key, problem)
  return texts


def as_array(values: Any) -> np.ndarray:
  """Returns an array of `values`; one without axes if their lengths differ."""
  try:
    return np.asarray(values)
  except ValueError:
    return np.array(None)


def check(config: config_lib.ModelConfig, ids_L: np.ndarray, *, key: str) -> None:
  """Raises `UserError` at `key` unless the model can read `ids_L`."""
  if not np.issubdtype(ids_L.dtype, np.integer):
    kind = type(ids_L.flat[0].item()).__name__ if ids_L.size else ids_L.dtype
    raise errors.UserError(key, f'token ids must be integers, not {kind}')
  outside = ids_L[(ids_L < 0) | (ids_L >= config.vocab_size)]
  if outside.size:
    problem = f'token id {outside[0]} is outside the vocabulary, 0 to {config.vocab_size - 1}'
    raise errors.UserError(key, problem)
  if ids_L.size > config.block_size:
    problem = f'{ids_L.size} tokens are more than the context, {config.block_size} (block_size)'
    raise errors.UserError(key, problem)


def start(tokenizer: tokenizers.Tokenizer | None) -> int:
  """Returns the token that a text begins with, where it has no prompt."""
  if tokenizer is None:
    return 0
  special = [i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None]
  try:
    return special[0] if special else int(tokenizer.encode('\n')[0])
  except errors.UserError:  # a vocabulary without newline
    return 0
