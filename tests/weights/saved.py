"""Small saved models, and devices to load them to."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import atomic, knobs, models
from gpt_jax import config as config_lib
from gpt_jax.data import tokenizers
from gpt_jax.parallel import sharding
from gpt_jax.weights import checkpoints, run_dir, saved_model
from tests import raised

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'
BYTE, BOS = (
  tokenizers.build(config_lib.DataConfig(tokenizer='byte', special_tokens=special), {})
  for special in ('', 'bos')
)
MODEL = config_lib.ModelConfig(
  n_layer=2, n_head=2, n_embd=8, block_size=8, vocab_size=257, pad_vocab_to=8, attention='xla'
)


def save_run(
  folder: pathlib.Path,
  model: config_lib.ModelConfig,
  params: dict[int, Any],
  *,
  val_losses: dict[int, float] | None = None,
  identity: dict[str, str] | None = None,
  more: dict[str, Any] | None = None,
) -> run_dir.RunDir:
  """Writes what a run leaves behind, without training: a checkpoint for each step of `params`.

  `more` are other values of its config, by key.
  """
  run = run_dir.RunDir(folder)
  folder.mkdir()
  config = config_lib.Config(model=model, init_from='base' if model.lora_rank else '')
  config = knobs.replace(config, more or {})
  atomic.write_json(run.config, dataclasses.asdict(config))
  atomic.write_json(run.tokenizer, BYTE.to_dict())
  identity = run_dir.identity(model, BYTE) if identity is None else identity
  with checkpoints.Checkpoints(run.checkpoints, keep=9) as saved:
    for step, tree in sorted(params.items()):
      items = {'params': tree, 'optimizer': {'count': jnp.int32(step)}}
      saved.save(step, items, score=(val_losses or {}).get(step), identity=identity)
  return run


def on_one_device(model: config_lib.ModelConfig) -> Any:
  """The abstract parameters of a model on the first device."""
  return models.abstract_params(model, jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def on_a_mesh(model: config_lib.ModelConfig, *, fsdp: int = 1, tensor: int = 2) -> Any:
  """The abstract parameters of a model, sharded over two devices."""
  devices = np.array(jax.devices()[:2]).reshape(2 // (fsdp * tensor), fsdp, tensor)
  abstract = models.abstract_params(model)
  mesh = jax.sharding.Mesh(devices, ('data', 'fsdp', 'tensor'))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    sharding.tree_shardings(mesh, abstract),
  )


def assert_equal(params: Any, wanted: Any) -> None:
  """Asserts that two trees have the same values."""
  assert str(jax.tree.structure(params)) == str(jax.tree.structure(wanted))
  jax.tree.map(np.testing.assert_array_equal, params, wanted)


def assert_placed(params: Any, abstract: Any) -> None:
  """Asserts that arrays have the shapes, types and shardings of an abstract tree."""
  assert str(jax.tree.structure(params)) == str(jax.tree.structure(abstract))
  for array, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True):
    assert (array.shape, array.dtype) == (wanted.shape, wanted.dtype)
    assert array.sharding.is_equivalent_to(wanted.sharding, array.ndim)


def read(path: Any, **changes: Any) -> tuple[config_lib.ModelConfig, Any]:
  """The config of the model at `path`, with options of ours, and its parameters."""
  model = saved_model.open_model(path)
  config = dataclasses.replace(model.config, attention='xla', **changes)
  return config, model.load(on_one_device(config))


def check_logits(path: Any, expected: Any, *, atol: float, **changes: Any) -> None:
  """Asserts that the model at `path` computes the logits in `expected`."""
  config, params = read(path, **changes)
  tokens_BL, wanted_BLV = (expected[key][:, : config.block_size] for key in ('tokens', 'logits'))
  logits_BLV, _ = jax.jit(models.make(config).apply)({'params': params}, tokens_BL)
  found_BLV = np.asarray(logits_BLV)[..., : config.vocab_size]
  np.testing.assert_allclose(found_BLV, wanted_BLV, rtol=0, atol=atol)
  np.testing.assert_array_equal(found_BLV.argmax(-1), wanted_BLV.argmax(-1))


def refused(path: Any, key: Any = None) -> str:
  """Asserts that the model at `path` is a user error at `key`, and returns the message."""
  error = raised.user_error(saved_model.open_model, path)
  assert {each.key for each in error.all} == {str(key or path)}
  return str(error)
