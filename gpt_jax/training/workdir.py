"""The files of a run: config, tokenizer, text (its hash), metrics, curves and checkpoints."""

import json
import os
import pathlib
import tempfile
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data import tokenizers

# Keys that may change between parts of a run: they decide where and how often, not what is computed
# (but for the order of float32 sums, which mesh and gradient_accumulation change).
_FREE = (
  'mesh.',
  'data.cache_dir',
  'data.processes',
  'data.verify',
  'train.gradient_accumulation',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.tensorboard',
  'model.attention',
  'model.remat',
)


class Workdir:
  """The directory of one run."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    self.config = self.path / 'config.json'
    self.tokenizer = self.path / 'tokenizer.json'
    self.text = self.path / 'text.json'
    self.metrics = self.path / 'metrics.jsonl'
    self.checkpoints = self.path / 'checkpoints'
    self.tensorboard = self.path / 'tensorboard'
    self.plot = self.path / 'loss.png'

  def check(self, config: config_lib.Config) -> None:
    """Raises `UserError` unless `config` may start or go on here. Leaves nothing behind.

    A run that has saved nothing yet has nothing to be mixed with: it may start anew.

    Args:
      config: the run's; `model.vocab_size` may still be 0 (unknown).
    """
    self._check_writable()
    if not self.config.exists():
      if self.checkpoints.exists():
        raise errors.UserError(
          f'{self.path} has checkpoints but no config.json: give another --workdir.'
        )
      return
    differences = _differences(self.read_config(), config)
    if differences and self._has_checkpoint():
      lines = '\n'.join(f'  {line}' for line in differences)
      raise errors.UserError(
        f'{self.path} holds a run with another config:\n{lines}\n'
        'Give the old values to go on with it, or another --workdir to start a new run.'
      )

  def _check_writable(self) -> None:
    parent = self.path
    try:
      while not parent.exists() and parent != parent.parent:
        parent = parent.parent
      with tempfile.TemporaryFile(dir=parent):
        pass
    except OSError as e:
      raise errors.UserError(
        f'the workdir {self.path} cannot be written ({e.strerror}): give another --workdir.'
      ) from e

  def _has_checkpoint(self) -> bool:
    return self.checkpoints.is_dir() and any(
      path.name.isdecimal() for path in self.checkpoints.iterdir()
    )

  def start(
    self,
    config: config_lib.Config,
    tokenizer: tokenizers.Tokenizer,
    text: dict[str, str],
  ) -> None:
    """Makes the directory and writes what describes the run.

    Args:
      config: the run's, resolved.
      tokenizer: what made the tokens.
      text: a hash of the tokens of each source.

    Raises:
      UserError: the run began with other text.
    """
    if self._has_checkpoint():
      changed = [spec for spec, old in _read_json(self.text).items() if text.get(spec) != old]
      if changed or self.read_tokenizer().hash != tokenizer.hash:
        raise errors.UserError(
          f'{self.path} holds a run on other text: {", ".join(changed) or config.data.source} has '
          'changed since. Bring the text back to go on, or give another --workdir to start anew.'
        )
    self.path.mkdir(parents=True, exist_ok=True)
    _write_json(self.config, config_lib.to_dict(config))
    _write_json(self.tokenizer, tokenizer.to_dict())
    _write_json(self.text, text)

  def read_config(self) -> config_lib.Config:
    """The config of the run; raises `UserError` if it isn't one."""
    try:
      return validation.from_dict(_read_json(self.config))
    except errors.UserError as e:
      raise errors.UserError(f'{self.config}: {e}') from e

  def read_tokenizer(self) -> tokenizers.Tokenizer:
    """The tokenizer of the run; raises `UserError` if it can't be made."""
    return tokenizers.from_dict(_read_json(self.tokenizer))


def _differences(old: config_lib.Config, new: config_lib.Config) -> list[str]:
  pairs = zip(config_lib.knobs(old), config_lib.knobs(new), strict=True)
  return [
    f'{was.key}: {was.value!r} there, {now.value!r} here'
    for was, now in pairs
    if was.value != now.value
    and not was.key.startswith(_FREE)
    and not (was.key == 'model.vocab_size' and now.value == 0)
  ]


def _write_json(path: pathlib.Path, values: dict[str, Any]) -> None:
  """Atomically: a reader sees the old file or the new one."""
  part = path.with_name(path.name + '.part')
  part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')
  part.replace(path)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    values = json.loads(path.read_text(encoding='utf-8'))
  except OSError as e:
    raise errors.UserError(f'{path} cannot be read: {e.strerror}') from e
  except ValueError as e:
    raise errors.UserError(f'{path} is damaged: {e}') from e
  if not isinstance(values, dict):
    raise errors.UserError(f'{path} is damaged: it must hold an object')
  return values
