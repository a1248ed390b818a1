"""The directory of a run, read: the names of its files, its config and its tokenizer."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping

from gpt_jax import config as config_lib
from gpt_jax import errors, json_files, validation
from gpt_jax.data import tokenizers

# Keys that decide the tree of parameters and what it computes.
_SIZES = ('n_layer', 'n_head', 'n_embd', 'block_size', 'vocab_size', 'pad_vocab_to')
_OPTIONS = ('bias', 'tie_embeddings', 'scan_layers', 'lora_rank', 'lora_alpha')


class RunDir:
  """The paths of the files of one run, which need not exist, and readers of two of them."""

  def __init__(self, path: str | os.PathLike[str]) -> None:
    self.path = pathlib.Path(path)
    self.config = self.path / 'config.json'
    self.tokenizer = self.path / 'tokenizer.json'
    self.text = self.path / 'text.json'  # hashes of the tokens of each source
    self.metrics = self.path / 'metrics.jsonl'
    self.checkpoints = self.path / 'checkpoints'
    self.tensorboard = self.path / 'tensorboard'
    self.plot = self.path / 'loss.png'

  def read_config(self) -> config_lib.Config:
    """Returns the config of the run; raises `UserError` if its file is missing or invalid."""
    return json_files.read_as(self.config, validation.from_dict)

  def read_tokenizer(self) -> tokenizers.Tokenizer:
    """Returns the tokenizer of the run; raises `UserError` if its file is missing or invalid."""
    return json_files.read_as(self.tokenizer, tokenizers.from_dict)

  def check_identity(self, step: int, saved: Mapping[str, str], own: Mapping[str, str]) -> None:
    """Raises `UserError` at config.json or tokenizer.json unless its hash in `own` is in `saved`.

    `saved` is the identity that the checkpoint of `step` has; those of older versions have none.
    """
    files = {'model': self.config, 'tokenizer': self.tokenizer}
    wrong = [file for key, file in files.items() if saved.get(key, own[key]) != own[key]]
    problem = f'does not belong to the checkpoint of step {step}'
    errors.raise_all([errors.UserError(str(file), problem, 'restore it') for file in wrong])


def identity(model: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
  """Returns hashes of the model (its `vocab_size` resolved) and the tokenizer of a checkpoint.

  A checkpoint stores them, so that a config.json or tokenizer.json of another run is noticed.
  """
  values = [(key, float(getattr(model, key))) for key in _SIZES + _OPTIONS]  # 16 is 16.0
  model_hash = hashlib.sha256(json.dumps(values).encode()).hexdigest()
  return {'model': model_hash, 'tokenizer': tokenizer.hash}
