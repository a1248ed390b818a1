"""What texts begin with, as users give it: read, checked, all problems at once."""

from collections.abc import Sequence

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data import tokenizers

Prompt = str | Sequence[int] | np.ndarray


def encode(
  config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer | None, prompt: Prompt
) -> list[int]:
  """The token ids that a text is continued from, at least one.

  Raises:
    UserError: The model can't read them, or they are more than `block_size`.
  """
  if isinstance(prompt, str):
    if not tokenizer:
      raise errors.UserError('the model has no tokenizer: give lists of token ids, not text')
    prompt = tokenizer.encode(prompt)
    if tokenizer.start_of_text is not None:
      prompt = np.concatenate([[tokenizer.start_of_text], prompt])
  ids = np.asarray(prompt)
  if ids.ndim != 1:
    raise errors.UserError(f'{prompt!r} must be text or a list of token ids')
  if not ids.size:
    return [_start(tokenizer)]
  check(config, ids)
  return ids.tolist()


def encode_all(
  config: config_lib.ModelConfig,
  tokenizer: tokenizers.Tokenizer | None,
  prompts: Sequence[Prompt],
) -> list[list[int]]:
  """The token ids of all prompts; raises `UserError` that names those that are amiss."""
  ids = []
  complaints: dict[str, int] = {}  # with the first prompt that each is about
  for i, prompt in enumerate(prompts):
    try:
      ids.append(encode(config, tokenizer, prompt))
    except errors.UserError as error:
      complaints.setdefault(str(error), i)
  validation.fail([f'prompts[{i}]: {complaint}' for complaint, i in complaints.items()])
  return ids


def check(config: config_lib.ModelConfig, ids_L: np.ndarray) -> None:
  """Raises `UserError` unless the model can read `ids_L`."""
  if not np.issubdtype(ids_L.dtype, np.integer):
    raise errors.UserError(f'token ids are {ids_L.dtype}, must be integers')
  outside = ids_L[(ids_L < 0) | (ids_L >= config.vocab_size)]
  if outside.size:
    raise errors.UserError(
      f'token id {outside[0]} is outside the vocabulary: 0 to {config.vocab_size - 1}'
    )
  if ids_L.size > config.block_size:
    raise errors.UserError(f'{ids_L.size} tokens, at most {config.block_size} (the block_size) fit')


def _start(tokenizer: tokenizers.Tokenizer | None) -> int:
  """The token of an empty prompt: what stands before a text, a newline, or token 0."""
  if tokenizer is None:
    return 0
  for token in (tokenizer.start_of_text, tokenizer.end_of_text):
    if token is not None:
      return token
  try:
    return int(tokenizer.encode('\n')[0])
  except errors.UserError:  # a vocabulary without newline
    return 0
