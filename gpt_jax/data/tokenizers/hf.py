"""Tokenizers of Hugging Face, from a tokenizer.json; the only module that imports `tokenizers`."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import errors, json_files
from gpt_jax.data.tokenizers import base

# What the special tokens are usually called, if no tokenizer_config.json says it.
_USUAL_NAMES = {
  'eos': ('</s>', '<|end_of_text|>', '<|endoftext|>', '<eos>', '[EOS]'),
  'bos': ('<s>', '<|begin_of_text|>', '<bos>', '[BOS]'),
  'unk': ('<unk>', '[UNK]'),
  'pad': ('<pad>', '[PAD]'),
}


class HfTokenizer(base.Tokenizer):
  """A tokenizer.json, run by the `tokenizers` package.

  Text that spells a special token, such as `</s>`, is encoded as ordinary text. A token that has
  several roles, as GPT-2's `<|endoftext|>`, has the first one here of eos, bos, unk and pad.
  """

  kind = 'hf'
  cuts = False

  def __init__(self, json_text: str, named: Mapping[str, str | None]):
    """Takes the contents of the file, and bos, eos, pad or unk -> the text of that special token.

    None stands for no such token; for one that is left out, its usual names are tried.
    """
    try:
      import tokenizers

      self._tokenizer = tokenizers.Tokenizer.from_str(json_text)
    except ImportError as e:
      fix = "pip install 'gpt_jax[tokenizers]'"
      raise errors.UserError('data.tokenizer', 'needs the package tokenizers', fix) from e
    except Exception as e:  # the package raises nothing narrower
      problem = f'is not a tokenizer of Hugging Face ({e})'
      raise errors.UserError('data.tokenizer', problem, 'get it again') from e
    # Nothing shall add or cut off tokens.
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self._tokenizer.encode_special_tokens = True
    self._json = json_text
    self._vocabulary: dict[str, int] = self._tokenizer.get_vocab()
    self._added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
    self._special_tokens: dict[str, str] = {}
    for role, usual in _USUAL_NAMES.items():
      found = next((token for token in usual if token in self._added), None)
      token = named.get(role, found)
      if token is None or token in self._special_tokens.values():
        continue
      if token not in self._vocabulary:
        problem = f'its {role}_token {token!r} is not in its vocabulary'
        raise errors.UserError('data.tokenizer', problem, 'correct its tokenizer_config.json')
      self._special_tokens[role] = token
    self._set_special_ids({r: self._vocabulary[t] for r, t in self._special_tokens.items()})
    # Not in `to_dict`: runs from before there was a mask keep their tokenizer's hash.
    masks = [self._vocabulary[token] for token in ('[MASK]', '<mask>') if token in self._added]
    self.mask_id = masks[0] if masks else None
    # Not their number: ids may have holes.
    self.vocab_size = 1 + max(self._vocabulary.values(), default=-1)

  def encode(self, text: str) -> np.ndarray:
    text = base.without_surrogates(text)
    try:
      ids = self._tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as e:  # the package raises nothing narrower
      raise errors.UserError('text', f'tokenizer.json cannot encode it: {e}') from e
    return np.array(ids, np.uint32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._tokenizer.decode(self._checked(ids).tolist(), skip_special_tokens=False)

  def token_id(self, token: str) -> int:
    # Byte-level vocabularies spell other characters than ASCII in their own way.
    spelled = token.isascii() or token in self._added
    if spelled and token in self._vocabulary and token not in base.SPECIAL_TOKENS:
      return self._vocabulary[token]
    return super().token_id(token)

  def token_bytes(self, token: int) -> bytes:
    once = self.decode([token])  # without the space that decoders drop at a text's start
    return self.decode([token, token])[len(once) :].encode()

  def to_dict(self) -> dict[str, Any]:
    return {'kind': self.kind, 'json': self._json, 'special_tokens': self._special_tokens}


def load(path: str) -> HfTokenizer:
  """Loads the tokenizer in the file `path`, or in the folder `path` as tokenizer.json.

  Special tokens are those that a tokenizer_config.json beside it names, else the usual ones. Raises
  `UserError` if a file is missing or damaged, or the package is missing.
  """
  file = pathlib.Path(path).expanduser()
  file = file / 'tokenizer.json' if file.is_dir() else file
  contents = json.dumps(json_files.read(file), ensure_ascii=False, separators=(',', ':'))
  beside = file.with_name('tokenizer_config.json')
  values = json_files.read(beside) if beside.exists() else {}
  named: dict[str, Any] = {}
  for role in base.SPECIAL_TOKENS:
    if (key := f'{role}_token') in values:
      token = values[key]
      named[role] = token.get('content', token) if isinstance(token, dict) else token
      if not isinstance(named[role], str | None):
        raise errors.UserError(str(beside), f'is damaged: {key} is not text', 'get it again')
  try:
    return HfTokenizer(contents, named)
  except errors.UserError as e:
    raise e.at(str(file)) from e
