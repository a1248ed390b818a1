"""Where the weights of a model come from: a run, or a directory in a published form."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data import tokenizers
from gpt_jax.models import gpt, lora
from gpt_jax.training import checkpoints as checkpoints_lib
from gpt_jax.training import workdir as workdir_lib
from gpt_jax.weights import huggingface, openai, published

# What weights decide, and a config that starts from them must agree with.
_DECIDED = ('n_layer', 'n_head', 'n_embd', 'vocab_size', 'bias', 'tie_embeddings')


@dataclasses.dataclass(frozen=True)
class Origin:
  """A model on disk, its weights not read yet.

  Attributes:
    path: Where it is.
    config: The architecture.
    tokenizer: None if it came without one.
    step: Of the checkpoint; None for published weights.
    params: From an abstract tree with shardings to the parameters. The tree may have a shorter
      context (positions are cropped) and another padding of the vocabulary. It has no adapters:
      those of a run come merged into the weights.
  """

  path: pathlib.Path
  config: config_lib.ModelConfig
  tokenizer: tokenizers.Tokenizer | None
  step: int | None
  params: Callable[[Any], Any]

  def check(self, model: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises `UserError` unless a run of this model with this tokenizer can start here."""
    # A checkpoint has a tree of its own; published tensors fit either.
    decided = _DECIDED if self.step is None else (*_DECIDED, 'scan_layers')
    found = [
      f'model.{key}: {getattr(model, key)!r} must be {getattr(self.config, key)!r}, as in '
      f'{self.path}'
      for key in decided
      if getattr(model, key) != getattr(self.config, key)
    ]
    if model.block_size > self.config.block_size:
      found.append(
        f'model.block_size: {model.block_size} must be at most {self.config.block_size}, as in '
        f'{self.path}'
      )
    if self.tokenizer is not None and self.tokenizer.hash != tokenizer.hash:
      found.append(
        f'data.tokenizer: the {tokenizer.kind} tokenizer is not that of {self.path} '
        f'({self.tokenizer.kind})'
      )
    validation.fail(found)


def open_origin(path: str | os.PathLike[str]) -> Origin:
  """The model at `path`.

  Args:
    path: a run's workdir, which gives the checkpoint with the best validation loss (the newest if
      none was measured), one checkpoint in it (WORKDIR/checkpoints/STEP), a model directory of
      Hugging Face (config.json, model.safetensors) or one of OpenAI (hparams.json, model.ckpt).

  Raises:
    UserError: there is no model, or it is damaged.
  """
  path = pathlib.Path(path)
  if huggingface.is_model(path):
    return _published(path, huggingface.open_model(path), huggingface.open_tokenizer(path))
  if openai.is_model(path):
    return _published(path, openai.open_model(path), _openai_tokenizer(path))
  return _trained(path)


def _openai_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer | None:
  if not (path / 'vocab.bpe').is_file():
    return None
  return tokenizers.build(config_lib.DataConfig(tokenizer=f'gpt2:{path}'), {})


def _published(
  path: pathlib.Path, model: published.Published, tokenizer: tokenizers.Tokenizer | None
) -> Origin:
  if tokenizer and tokenizer.vocab_size != model.config.vocab_size:
    raise errors.UserError(
      f'{path}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model '
      f'{model.config.vocab_size:,}.'
    )
  return Origin(path, model.config, tokenizer, None, model.params)


def _trained(path: pathlib.Path) -> Origin:
  wanted = int(path.name) if path.parent.name == 'checkpoints' and path.name.isdecimal() else None
  workdir = workdir_lib.Workdir(path if wanted is None else path.parent.parent)
  if not os.path.isfile(workdir.config) or not os.path.isdir(workdir.checkpoints):
    raise errors.UserError(
      f'{path} has no model: give the workdir of a run (the directory with config.json and '
      'checkpoints), for example runs/quickstart, one checkpoint in it, or a directory with '
      'published weights (config.json and model.safetensors, or hparams.json).'
      f'{_runs_at_hand()}{_download(path)}'
    )
  config = workdir.read_config()
  if not config.model.vocab_size:
    raise errors.UserError(f'{workdir.config} is damaged: it must tell model.vocab_size')
  with checkpoints_lib.Checkpoints(workdir.checkpoints, keep=1, read_only=True) as checkpoints:
    steps, best = checkpoints.steps(), checkpoints.best_step()
  if not steps:
    raise errors.UserError(f'{workdir.path} has no finished checkpoint yet: train it further.')
  if wanted is not None and wanted not in steps:
    have = ', '.join(map(str, steps))
    raise errors.UserError(f'{path} is not a finished checkpoint; there are: {have}.')
  step = wanted if wanted is not None else best if best is not None else steps[-1]
  read = functools.partial(_restore, workdir, config.model, step)
  merged = dataclasses.replace(config.model, lora_rank=0)
  return Origin(path, merged, workdir.read_tokenizer(), step, read)


def _restore(
  workdir: workdir_lib.Workdir, saved: config_lib.ModelConfig, step: int, abstract: Any
) -> Any:
  """The parameters of a checkpoint, merged, cropped or padded to the shapes of `abstract`."""

  def as_saved(was: Any, wanted: Any) -> Any:
    sharding = wanted.sharding if was.shape == wanted.shape else None
    return jax.ShapeDtypeStruct(was.shape, was.dtype, sharding=sharding or _whole(wanted.sharding))

  def fit(array: jax.Array, wanted: Any) -> jax.Array:
    if array.shape == wanted.shape:
      return array
    rows = min(array.shape[0], wanted.shape[0])
    fitted = jnp.zeros(wanted.shape, wanted.dtype).at[:rows].set(array[:rows])
    return jax.device_put(fitted, wanted.sharding)

  everywhere = _whole(jax.tree.leaves(abstract)[0].sharding)
  adapters, base = lora.split(gpt.abstract_params(saved, everywhere))
  shapes = lora.join(adapters, jax.tree.map(as_saved, base, abstract))
  with checkpoints_lib.Checkpoints(workdir.checkpoints, keep=1, read_only=True) as checkpoints:
    params = checkpoints.restore_params(step, shapes)
  if adapters:
    params = _merged(saved, params)
  return jax.tree.map(fit, params, abstract)


def _merged(saved: config_lib.ModelConfig, params: Any) -> Any:
  """`lora.merge` where the parameters lie, in the memory of the base."""
  adapters, base = lora.split(params)
  merge = jax.jit(
    lambda adapters, base: lora.merge(saved, lora.join(adapters, base)),
    donate_argnums=1,
    out_shardings=jax.tree.map(lambda x: x.sharding, base),
  )
  return merge(adapters, base)


def _whole(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
  """All of an array on every device that `sharding` has a part of it on."""
  if isinstance(sharding, jax.NamedSharding):
    return jax.NamedSharding(sharding.mesh, jax.P())
  return sharding


def _download(path: pathlib.Path) -> str:
  if os.path.exists(path):
    return ''
  return (
    ' To get GPT-2 there: pip install huggingface_hub; hf download openai-community/gpt2 '
    f'config.json model.safetensors merges.txt vocab.json --local-dir={path}'
  )


def _runs_at_hand() -> str:
  runs = sorted(str(path.parent) for path in pathlib.Path('runs').glob('*/config.json'))
  return f' Runs here: {", ".join(runs)}.' if runs else ''
