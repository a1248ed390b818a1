"""A model on disk, in any of its forms: a run, or a directory of Hugging Face or OpenAI."""

import dataclasses
import functools
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, json_files, models
from gpt_jax.data import tokenizers
from gpt_jax.models import lora
from gpt_jax.weights import hub, manifest, run_dir
from gpt_jax.weights import tensors as tensors_lib

# What weights decide, and a config that starts from them must agree with.
_DECIDED = ('kind', 'n_layer', 'n_head', 'n_embd', 'vocab_size', 'bias', 'tie_embeddings')
_OF_RUNS = ('scan_layers', 'lstm_width', 'clusters')  # more that decides those of a run


@dataclasses.dataclass(frozen=True)
class SavedModel:
  """A model on disk, its weights not read yet."""

  path: pathlib.Path
  config: config_lib.ModelConfig  # without adapters: those of a run are merged
  tokenizer: tokenizers.Tokenizer | None
  step: int | None  # of the checkpoint; None for a model of Hugging Face or OpenAI
  # Reads the parameters into an abstract tree with shardings, which may have a shorter context
  # (positions are cropped) and another padding of the vocabulary.
  load: Callable[[Any], Any]
  run: run_dir.RunDir | None = None  # that it is of, if any
  template: str = ''  # of prompts, see `config.DataConfig`

  def check(self, model: config_lib.ModelConfig, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises `UserError` unless a run of this model with this tokenizer can start from it."""
    # A checkpoint has a tree of its own; tensors of others fit either.
    decided = (*_DECIDED, *(_OF_RUNS if self.step is not None else ()))
    found = []
    for key in decided:
      value, wanted = getattr(model, key), getattr(self.config, key)
      if value != wanted:
        problem = f'{value!r} must be {wanted!r}, as in {self.path}'
        found.append(errors.UserError(f'model.{key}', problem))
    if model.block_size > self.config.block_size:
      problem = f'{model.block_size} must be at most {self.config.block_size}, as in {self.path}'
      found.append(errors.UserError('model.block_size', problem))
    if self.tokenizer is not None and self.tokenizer.hash != tokenizer.hash:
      problem = f'the {tokenizer.kind} tokenizer is not the one of {self.path}'
      found.append(errors.UserError('data.tokenizer', f'{problem} ({self.tokenizer.kind})'))
    errors.raise_all(found)


def open_model(path: str | os.PathLike[str]) -> SavedModel:
  """Opens the model at `path` without reading its weights; raises `UserError`.

  `path` is a run's workdir, which gives the checkpoint with the best validation loss (the newest if
  none was measured), one checkpoint in it (WORKDIR/checkpoints/STEP), a directory of Hugging Face
  (config.json, model.safetensors), one of OpenAI (hparams.json, model.ckpt) or what is no path but
  a name as of `hub.download`, such as gpt2.
  """
  if not isinstance(path, str | os.PathLike) or '\0' in str(path):
    raise errors.UserError('path', f'{path!r} must be the path of a model')
  path = hub.download(os.fspath(path)) or pathlib.Path(path)
  has_config = os.path.isfile(path / 'config.json')
  values = json_files.read(path / 'config.json') if has_config else {}
  if 'model_type' in values:
    from gpt_jax.weights import huggingface

    config, tensors = huggingface.open_model(path, values)
    tokenizer = huggingface.open_tokenizer(path)
  elif os.path.isfile(path / 'hparams.json'):
    from gpt_jax.weights import openai

    config, tensors = openai.open_model(path)
    tokenizer = openai.open_tokenizer(path)
  elif has_config and any(path.glob('*.safetensors')):
    problem = 'does not say the model_type, such as gpt2'
    raise errors.UserError(str(path / 'config.json'), problem, 'get it again')
  else:
    return _open_run(path)
  if tokenizer and tokenizer.vocab_size != config.vocab_size:
    problem = f'its tokenizer has {tokenizer.vocab_size:,} tokens, its model {config.vocab_size:,}'
    raise errors.UserError(str(path), problem)
  read = functools.partial(tensors_lib.load, tensors, n_layer=config.n_layer)
  load = functools.partial(read, path=path)
  return SavedModel(path, config, tokenizer, None, load)


def _open_run(path: pathlib.Path) -> SavedModel:
  """Opens a workdir or a checkpoint in one."""
  wanted, workdir = None, path
  # The real path too: `path` may be relative to the folder of checkpoints, or a link.
  for place in (path, pathlib.Path(os.path.realpath(path))):
    if place.parent.name == 'checkpoints' and place.name.isdecimal():
      wanted, workdir = int(place.name), place.parent.parent
      break
  run = run_dir.RunDir(workdir)
  if not os.path.isfile(run.config) or not os.path.isdir(run.checkpoints):
    fix = "give a run's workdir, WORKDIR/checkpoints/STEP, or a directory of Hugging Face or OpenAI"
    if runs := sorted(str(file.parent) for file in pathlib.Path('runs').glob('*/config.json')):
      fix += f' (runs here: {", ".join(runs)})'
    if not os.path.exists(path):
      fix += f'; {", ".join(hub.PUBLISHED)} and hf:OWNER/NAME are downloaded'
    raise errors.UserError(str(path), 'is not a model', fix)
  config, tokenizer = run.read_config(), run.read_tokenizer()
  model = config.model
  saved = _choose(run, path, wanted)
  run.check_identity(saved, run_dir.identity(model, tokenizer))
  load = functools.partial(_restore, run, model, saved.step)
  model = dataclasses.replace(model, lora_rank=0)
  return SavedModel(path, model, tokenizer, saved.step, load, run, config.data.template)


def _choose(run: run_dir.RunDir, path: pathlib.Path, wanted: int | None) -> manifest.Manifest:
  """Returns the checkpoint to load: the wanted one, else the best, else the newest, if intact."""
  scores = manifest.scores(run.checkpoints)
  if not scores:
    raise errors.UserError(str(path), 'has no finished checkpoint yet', 'train it further')
  if wanted is not None and wanted not in scores:
    have = ', '.join(map(str, scores))
    raise errors.UserError(str(path), f'is not a finished checkpoint; there are {have}')
  best = manifest.best(scores) if wanted is None else wanted
  others = [step for step in reversed(scores) if step != best] if wanted is None else []
  order = others if best is None else [best, *others]
  intact, damaged = manifest.first_intact(run.checkpoints, order, ['params'])
  if intact is None:
    raise damaged[0]
  for problem in damaged:
    told = f'warning: {problem.key} {problem.problem}; step {intact.step} is used'
    print(told, file=sys.stderr)
  return intact


def _restore(run: run_dir.RunDir, saved: config_lib.ModelConfig, step: int, abstract: Any) -> Any:
  """Reads the parameters of a checkpoint, merges adapters, and fits them to `abstract`."""
  from gpt_jax.weights import checkpoints as checkpoints_lib  # Orbax is slow to import

  def as_saved(was: Any, wanted: Any) -> Any:
    # What doesn't fit yet can't be sharded yet.
    sharding = wanted.sharding if was.shape == wanted.shape else _replicated(wanted.sharding)
    return jax.ShapeDtypeStruct(was.shape, was.dtype, sharding=sharding)

  def fit(array: jax.Array, wanted: Any) -> jax.Array:
    if array.shape == wanted.shape:
      return array
    rows = min(array.shape[0], wanted.shape[0])
    fitted = jnp.zeros(wanted.shape, wanted.dtype).at[:rows].set(array[:rows])
    return jax.device_put(fitted, wanted.sharding)

  sharding = _replicated(jax.tree.leaves(abstract)[0].sharding)
  adapters, base = lora.split(models.abstract_params(saved, sharding))
  # The layer of a classifier may not be wanted.
  base, extra = lora.split_by(base, lambda path: path[0] in abstract)
  shapes = lora.join(adapters, lora.join(jax.tree.map(as_saved, base, abstract), extra))
  folder = run.checkpoints / str(step)
  params = checkpoints_lib.restore(folder, {'params': shapes})['params']
  for place, leaf in jax.tree_util.tree_leaves_with_path(params):
    for shard in leaf.addressable_shards:
      name = jax.tree_util.keystr(place, simple=True, separator='.')
      tensors_lib.check_finite(folder, name, np.asarray(shard.data))
  if saved.lora_rank:
    adapters, base = lora.split(params)
    merge = jax.jit(
      lambda adapters, base: lora.merge(saved, lora.join(adapters, base)),
      donate_argnums=1,
      out_shardings=jax.tree.map(lambda x: x.sharding, base),
    )
    params = merge(adapters, base)
  params, _ = lora.split_by(params, lambda path: path[0] in abstract)
  return jax.tree.map(fit, params, abstract)


def _replicated(sharding: Any) -> jax.sharding.Sharding:
  """The sharding that copies an array to each of these devices."""
  is_named = isinstance(sharding, jax.NamedSharding)
  return jax.NamedSharding(sharding.mesh, jax.P()) if is_named else sharding
