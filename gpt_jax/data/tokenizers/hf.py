"""Tokenizers of Hugging Face, from a tokenizer.json; the only module that imports `tokenizers`."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import errors
from gpt_jax.data.tokenizers import base

# What the special tokens are usually called, where no tokenizer_config.json says it.
_USUAL_NAMES = {
  'bos': ('<s>', '<|begin_of_text|>', '<bos>', '[BOS]'),
  'eos': ('</s>', '<|end_of_text|>', '<|endoftext|>', '<eos>', '[EOS]'),
  'pad': ('<pad>', '[PAD]'),
  'unk': ('<unk>', '[UNK]'),
}
_ROLE_OF_KEY = {f'{role}_token': role for role in base.SPECIAL_TOKENS}


class HfTokenizer(base.Tokenizer):
  """A tokenizer.json, run by the `tokenizers` package.

  Text that spells a special token, such as `</s>`, is encoded as ordinary text. A token that has
  several roles, as GPT-2's `<|endoftext|>`, has the first one here of eos, bos, unk and pad.
  """

  kind = 'hf'
  cuts = False

  def __init__(self, json_text: str, special_tokens: Mapping[str, str]):
    """Takes the contents of the file, and the special tokens: bos, eos, pad or unk -> its text.

    Raises:
      UserError: The file isn't a tokenizer, a token isn't in it, or the package is missing.
    """
    self._tokenizer = _parse(json_text)
    self._json = json_text
    self._special_tokens = dict(special_tokens)
    ids = {role: self._tokenizer.token_to_id(token) for role, token in special_tokens.items()}
    for role, i in ids.items():
      if i is None:
        raise errors.UserError(
          f'{special_tokens[role]!r}, named as {role}, is not in the vocabulary of tokenizer.json: '
          f'correct {role}_token in the tokenizer_config.json beside it'
        )
    self.start_of_text, self.end_of_text = ids.get('bos'), ids.get('eos')
    self.padding, self.unknown = ids.get('pad'), ids.get('unk')
    self._vocabulary = self._tokenizer.get_vocab()
    # Not their number: ids may have holes.
    self.vocab_size = 1 + max(self._vocabulary.values(), default=-1)

  def encode(self, text: str) -> np.ndarray:
    """As `Tokenizer.encode`."""
    text = base.without_surrogates(text)
    try:
      ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as e:  # the package raises nothing narrower
      raise errors.UserError(f'tokenizer.json cannot encode the text: {e}') from e
    return np.array(ids, np.uint32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """As `Tokenizer.decode`."""
    return self._tokenizer.decode(self._checked_text(ids).tolist(), skip_special_tokens=False)

  def token_id(self, token: str) -> int:
    """As `Tokenizer.token_id`; a token is also known by its entry in the vocabulary."""
    # Byte-level vocabularies spell other characters than ASCII in their own way.
    spelled = token.isascii() or token in _added(self._tokenizer)
    if spelled and token in self._vocabulary and token not in base.SPECIAL_TOKENS:
      return self._vocabulary[token]
    return super().token_id(token)

  def token_bytes(self, token: int) -> bytes:
    """As `Tokenizer.token_bytes`, with the space that the decoder drops at the start of a text."""
    once = self.decode([token])
    return self.decode([token, token])[len(once) :].encode()

  def to_dict(self) -> dict[str, Any]:
    """As `Tokenizer.to_dict`: the whole file, so that a run needs no other."""
    return {'kind': self.kind, 'json': self._json, 'special_tokens': self._special_tokens}


def load(path: str) -> HfTokenizer:
  """The tokenizer in the file `path`, or in the folder `path` as tokenizer.json.

  Special tokens are those that a tokenizer_config.json beside it names, else the usual ones.

  Raises:
    UserError: The files can't be read or aren't sound, or the package is missing.
  """
  file = _file(path)
  try:
    contents = json.loads(_read(file))
  except ValueError as e:
    raise errors.UserError(f'{file} is not JSON ({e}): download it again') from e
  canonical = json.dumps(contents, ensure_ascii=False, separators=(',', ':'))
  try:
    return HfTokenizer(canonical, _special_tokens(_added(_parse(canonical)), _named(file)))
  except errors.UserError as e:
    raise errors.UserError(f'{file}: {e}') from e


def description(path: str) -> dict[str, Any]:
  """What decides the tokenizer at `path`, for JSON; raises `UserError` if it can't be read."""
  file = _file(path)
  return {'sha256': hashlib.sha256(_read(file)).hexdigest(), 'special_tokens': _named(file)}


def _special_tokens(added: set[str], named: Mapping[str, str | None]) -> dict[str, str]:
  """The special tokens by role, each token in one role only."""
  tokens: dict[str, str] = {}
  for role in ('eos', 'bos', 'unk', 'pad'):
    usual = (token for token in _USUAL_NAMES[role] if token in added)
    token = named[role] if role in named else next(usual, None)
    if token is not None and token not in tokens.values():
      tokens[role] = token
  return tokens


def _file(path: str) -> pathlib.Path:
  file = pathlib.Path(path).expanduser()
  return file / 'tokenizer.json' if file.is_dir() else file


def _read(file: pathlib.Path) -> bytes:
  try:
    return file.read_bytes()
  except OSError as e:
    raise errors.UserError(
      f'{file} cannot be read ({e.strerror}): name a tokenizer.json, or a folder that has one, '
      'with --config.data.tokenizer=hf:PATH'
    ) from e


def _named(file: pathlib.Path) -> dict[str, str | None]:
  """The special tokens that the tokenizer_config.json beside `file` names; None: has no such."""
  path = file.with_name('tokenizer_config.json')
  if not path.exists():
    return {}
  try:
    named = {key: t for key, t in json.loads(_read(path)).items() if key in _ROLE_OF_KEY}
    tokens = {
      _ROLE_OF_KEY[key]: t['content'] if isinstance(t, dict) else t for key, t in named.items()
    }
  except (ValueError, KeyError, AttributeError) as e:
    raise errors.UserError(f'{path} is damaged ({e!r}): download it again') from e
  if not all(token is None or isinstance(token, str) for token in tokens.values()):
    raise errors.UserError(f'{path} is damaged: its special tokens must be text, not {tokens}')
  return tokens


def _parse(json_text: str) -> Any:
  """The `tokenizers.Tokenizer` of a file, without what would add or cut off tokens."""
  try:
    import tokenizers
  except ImportError as e:
    raise errors.UserError(
      'a tokenizer.json needs the tokenizers package: run "pip install -e \'.[tokenizers]\'"'
    ) from e
  try:
    tokenizer = tokenizers.Tokenizer.from_str(json_text)
  except Exception as e:  # the package raises nothing narrower
    raise errors.UserError(f'this is not a tokenizer of Hugging Face: {e}') from e
  tokenizer.no_padding()
  tokenizer.no_truncation()
  tokenizer.encode_special_tokens = True
  return tokenizer


def _added(tokenizer: Any) -> set[str]:
  """The texts of the tokens that a file adds to its model's."""
  return {token.content for token in tokenizer.get_added_tokens_decoder().values()}
