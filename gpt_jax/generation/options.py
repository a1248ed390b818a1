"""The options of generation, as users give them: checked, all problems at once."""

import difflib
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data import tokenizers

_DEFAULTS = config_lib.GenerationConfig()
# Contrastive search takes so many continuations of each row through the model.
_MOST_CANDIDATES = 64

Token = str | int


def make(values: Mapping[str, Any]) -> config_lib.GenerationConfig:
  """The options with these names; raises `UserError` that lists every problem."""
  options = config_lib.GenerationConfig()
  found = []
  for name, value in values.items():
    if name in config_lib.GenerationConfig.__dataclass_fields__:
      setattr(options, name, _plain(value))
    else:
      near = difflib.get_close_matches(name, config_lib.GenerationConfig.__dataclass_fields__, n=1)
      found.append(f'{name}: no such option' + (f'; did you mean {near[0]}?' if near else ''))
  validation.fail(found + list(problems(options)))
  return options


def _plain(value: Any) -> Any:
  """NumPy's numbers as Python's."""
  if isinstance(value, numbers.Integral) and not isinstance(value, bool):
    return int(value)
  return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def problems(options: config_lib.GenerationConfig) -> Iterator[str]:
  """What is wrong with the options, a line each: name, bad value, what is allowed."""
  by_key = {knob.key: list(validation.knob_problems(knob)) for knob in config_lib.knobs(options)}
  found = [line for lines in by_key.values() for line in lines]
  yield from found
  if found:
    return
  if options.min_new_tokens > options.max_new_tokens:
    yield (
      f'min_new_tokens: {options.min_new_tokens} must be at most max_new_tokens '
      f'({options.max_new_tokens})'
    )
  if options.contrastive_alpha and not 2 <= options.top_k <= _MOST_CANDIDATES:
    yield (
      f'top_k: {options.top_k} must be from 2 to {_MOST_CANDIDATES} for contrastive_alpha, '
      '4 to 10 are usual'
    )
  if options.num_beams > 1 and options.contrastive_alpha:
    yield 'contrastive_alpha: contradicts num_beams: leave one of them out'
  searches = 'num_beams' if options.num_beams > 1 else 'contrastive_alpha'
  if options.num_beams > 1 or options.contrastive_alpha:
    for name in ('top_p', 'min_p', 'typical_p', 'seed'):
      if getattr(options, name) != getattr(_DEFAULTS, name):
        yield f'{name}: contradicts {searches}, which does not draw: leave one of them out'


def bias(
  tokenizer: tokenizers.Tokenizer | None,
  vocab_size: int,
  padded_vocab_size: int,
  *,
  ban: Sequence[Token],
  logit_bias: Mapping[Token, float],
) -> np.ndarray | None:
  """What is added to the logits, float32 (V,); None if nothing is.

  Args:
    tokenizer: Of the model, if it has one.
    vocab_size: Ids are below it.
    padded_vocab_size: V.
    ban: Tokens that never come, as ids or as text that is one token.
    logit_bias: What is added to the logits of tokens; -inf bans.

  Raises:
    UserError: Something is no token, a bias isn't a number, or all tokens are banned.
  """
  if not ban and not logit_bias:
    return None
  bias_V = np.zeros(padded_vocab_size, np.float32)
  found = []
  named = [('logit_bias', *item) for item in logit_bias.items()]
  for option, token, value in [*named, *(('ban', token, -np.inf) for token in ban)]:
    if not isinstance(value, numbers.Real) or np.isnan(float(value)) or float(value) == np.inf:
      found.append(f'{option}: {value!r} for {token!r} must be a number, or -inf')
      continue
    try:
      bias_V[_token_id(tokenizer, vocab_size, token)] += value
    except errors.UserError as e:
      found.append(f'{option}: {e}')
  validation.fail(found)
  if not np.isfinite(bias_V[:vocab_size]).any():
    raise errors.UserError('ban: no token is left that could be generated')
  return bias_V


def _token_id(tokenizer: tokenizers.Tokenizer | None, vocab_size: int, token: Token) -> int:
  if isinstance(token, str):
    if tokenizer is None:
      raise errors.UserError(f'{token!r}: the model has no tokenizer, give token ids')
    return tokenizer.token_id(token)
  if not 0 <= token < vocab_size:
    raise errors.UserError(f'{token} is no token id: they are 0 to {vocab_size - 1}')
  return int(token)
