"""The directory of a run, read: the names of its files, its config and its tokenizer."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import errors, json_files, validation
from gpt_jax.data import tokenizers
from gpt_jax.weights import manifest

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
    self.trackers = self.path / 'trackers.json'  # who the run is in those of train.trackers
    self.plot = self.path / 'loss.png'
    self.kernels = self.path / 'kernels.txt'  # those of GPUs, if train.deterministic

  def read_config(self) -> config_lib.Config:
    """Returns the config of the run; raises `UserError` if its file is missing or invalid."""
    values = json_files.read(self.config)
    try:
      return validation.from_dict(values)
    except errors.UserError as e:
      found = [(f'{each.key}: {each.problem}', each.fix) for each in e.all]
      errors.raise_all([errors.UserError(str(self.config), *each) for each in found])
      raise

  def read_tokenizer(self) -> tokenizers.Tokenizer:
    """Returns the tokenizer of the run; raises `UserError` if its file is missing or invalid."""
    return json_files.read_as(self.tokenizer, tokenizers.from_dict)

  def changed_text(self, content_hashes: Mapping[str, str]) -> list[errors.UserError]:
    """Returns an error for each source whose text isn't the one that the run began with."""
    fix = 'undo the change, or choose another `workdir`'
    return [
      errors.UserError('data.source', f'{spec} has changed since {self.path} began', fix)
      for spec, was in json_files.read(self.text).items()
      if content_hashes.get(spec) != was
    ]

  def check_identity(self, saved: manifest.Manifest, own: Mapping[str, str]) -> None:
    """Raises `UserError` at config.json or tokenizer.json whose hash in `own` isn't the saved."""
    files = {'model': self.config, 'tokenizer': self.tokenizer}
    wrong = [file for key, file in files.items() if saved.identity[key] != own[key]]
    problem = f'does not belong to the checkpoint of step {saved.step}'
    errors.raise_all([errors.UserError(str(file), problem, 'restore it') for file in wrong])


def identity(model: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer) -> dict[str, str]:
  """Returns hashes of the model (its `vocab_size` resolved) and the tokenizer of a checkpoint.

  A checkpoint stores them, so that a config.json or tokenizer.json of another run is noticed.
  """
  # 16 is 16.0, and what earlier versions didn't have isn't in their hashes.
  values: list[Any] = [(key, float(getattr(model, key))) for key in _SIZES + _OPTIONS]
  if model.kind != 'gpt' or model.classes or model.clusters:
    more = ('kind', 'lstm_width', 'clusters', 'classes', 'pooling')
    values += [getattr(model, key) for key in more]
  model_hash = hashlib.sha256(json.dumps(values).encode()).hexdigest()
  return {'model': model_hash, 'tokenizer': tokenizer.hash}
