"""The options of generation: validated once, all problems reported together. Imports no JAX."""

import dataclasses
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs
from gpt_jax.data import tokenizers
from gpt_jax.generation import settings as settings_lib

Token = str | int
_DRAWS = ('temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'seed')
_MOST_BIAS = 1e37  # float32 has room for some of them
_DEFAULTS = {knob.key: knob.value for knob in knobs.knobs(settings_lib.Settings())}


@dataclasses.dataclass(frozen=True)
class Request:
  """How to generate, valid as far as the model doesn't matter; fields as of `make`."""

  settings: settings_lib.Settings
  stop: Sequence[str]
  ban: Sequence[Token]
  logit_bias: Mapping[Token, float]
  draft: Any  # a LanguageModel or None


def make(
  *,
  stop: Sequence[str] = (),
  ban: Sequence[Token] = (),
  logit_bias: Mapping[Token, float] | None = None,
  draft: Any = None,
  **values: Any,
) -> Request:
  """Returns a request for `LanguageModel.generate`.

  Args:
    stop: Strings that end a text, which doesn't contain them.
    ban: Tokens that are never generated, as ids or as text that is one token.
    logit_bias: What is added to the logits of tokens; -inf bans.
    draft: A smaller `LanguageModel` with the same vocabulary, which proposes tokens to save time.
      The distribution of the text is the same as without it, at temperature 0 the text is.
    **values: Those of `settings.Settings`.

  Raises `UserError` with every problem.
  """
  found, plain = [], {}
  for name, value in values.items():
    if name in _DEFAULTS:
      plain[name] = value.item() if isinstance(value, np.generic) else value
    else:
      near = knobs.suggestion(name, _DEFAULTS)
      fix = near or 'see gpt_jax.generation.settings'
      found.append(errors.UserError(name, 'no such option', fix))
  settings = dataclasses.replace(settings_lib.Settings(), **plain)
  invalid = [error for knob in knobs.knobs(settings) for error in knobs.problems(knob)]
  least, most, beams = settings.min_new_tokens, settings.max_new_tokens, settings.num_beams
  if not invalid and least > most:
    problem = f'{least} must be at most `max_new_tokens` ({most})'
    invalid.append(errors.UserError('min_new_tokens', problem))
  for name in _DRAWS if not invalid and beams > 1 else ():
    off = 0 if name in ('temperature', 'top_k') else None  # what draws nothing is no contradiction
    if getattr(settings, name) not in (_DEFAULTS[name], off):
      invalid.append(errors.UserError(name, 'cannot be combined with `num_beams`'))
  if not invalid and beams == 1 and settings.length_penalty != _DEFAULTS['length_penalty']:
    invalid.append(errors.UserError('length_penalty', 'needs `num_beams` of 2 or more'))
  if not _is_list(stop) or not all(isinstance(each, str) and each for each in stop):
    problem = f'{stop!r} must be a list of strings, none of them empty'
    invalid.append(errors.UserError('stop', problem))
  if not _is_list(ban) or not all(map(_is_token, ban)):
    problem = f'{ban!r} must be a list of tokens, as text or ids'
    invalid.append(errors.UserError('ban', problem))
  logit_bias = {} if logit_bias is None else logit_bias
  if not isinstance(logit_bias, Mapping) or not all(map(_is_token, logit_bias)):
    problem = f'{logit_bias!r} must be a dict of tokens, as text or ids, and numbers'
    invalid.append(errors.UserError('logit_bias', problem))
  errors.raise_all(found + invalid)
  return Request(settings, stop, ban, logit_bias, draft)


def _is_list(given: Any) -> bool:
  return isinstance(given, Collection) and not isinstance(given, str | bytes)


def _is_token(given: Any) -> bool:
  return isinstance(given, str | numbers.Integral) and not isinstance(given, bool)


def bias(
  config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer | None, request: Request
) -> np.ndarray | None:
  """Returns what `ban` and `logit_bias` add to the logits, float32 (padded vocabulary,), or None.

  Raises `UserError` for invalid tokens or numbers, and if all tokens are banned.
  """
  banned = [('ban', token, -np.inf) for token in request.ban]
  biases: list[Any] = [*(('logit_bias', *item) for item in request.logit_bias.items()), *banned]
  bias_V, found = np.zeros(config.padded_vocab_size, np.float32), []
  for key, token, value in biases:
    number = float(value) if isinstance(value, numbers.Real) else np.nan
    if not (abs(number) <= _MOST_BIAS or number == -np.inf):
      problem = f'{value!r} for {token!r} must be a number, at most {_MOST_BIAS:g}, or -inf'
      found.append(errors.UserError(key, problem))
      continue
    try:
      bias_V[_token_id(config, tokenizer, token)] += number
    except errors.UserError as e:
      found.append(e.at(key))
  errors.raise_all(found)
  if not np.isfinite(bias_V[: config.vocab_size]).any():
    raise errors.UserError('ban', 'leaves no token that could be generated')
  return bias_V if biases else None


def _token_id(
  config: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer | None, token: Token
) -> int:
  if not isinstance(token, str):
    if 0 <= token < config.vocab_size:
      return int(token)
    raise errors.UserError('token', f'{token} is not a token id, 0 to {config.vocab_size - 1}')
  if tokenizer is None:
    raise errors.UserError('token', f'{token!r}: the model has no tokenizer', 'use token ids')
  return tokenizer.token_id(token)
