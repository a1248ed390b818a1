"""Language models, each a Flax module of one shape: `hidden`, `logits`, and a cache for decoding.

Code outside of this package asks for the model of a config, and knows nothing of its inside.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from gpt_jax import config as config_lib
from gpt_jax.models import classifier, encoder_decoder, gpt, lora, lstm, quantized

Model = gpt.GPT | lstm.LSTM
_OTHERS: dict[str, Any] = {'lstm': lstm.LSTM, 'encoder_decoder': encoder_decoder.EncoderDecoder}
_TABLES = (('wte', 'embedding'), ('lm_head',))  # a row for each token


def make(config: config_lib.ModelConfig) -> Model:
  """Returns the module of a config, without parameters."""
  made: Model = _OTHERS.get(config.kind, gpt.GPT)(config)
  return made


def init(config: config_lib.ModelConfig, key: jax.Array) -> Any:
  """Returns random parameters, a function of `key`; those of a classifier have its layer too."""
  # Kernels of accelerators take no single token.
  model = make(dataclasses.replace(config, attention='xla'))
  token_11 = jnp.zeros((1, 1), jnp.int32)
  sources: dict[str, Any] = {'sources_BM': token_11} if config.kind == 'encoder_decoder' else {}
  params = model.init(key, token_11, **sources)['params']
  if config.classes:
    params = {**params, classifier.NAME: classifier.init(config, jax.random.fold_in(key, 1))}
  return params


def for_inference(
  config: config_lib.ModelConfig, params: Any, dtype: str
) -> tuple[config_lib.ModelConfig, Any]:
  """Returns a model whose matrices take as little memory as `dtype` says, and its config.

  With float32 parameters stay as they are. Else matrices are quantized, except that an accelerator
  computes in bfloat16 anyway: there bfloat16 only casts them. The tree keeps its names, but a tied
  table has a copy for the output layer, `lm_head`. Of an LSTM the output layer alone is quantized,
  the layer of a classifier never.
  """
  if dtype == 'float32':
    return dataclasses.replace(config, dtype=dtype), params
  on_cpu = jax.default_backend() == 'cpu'
  config = dataclasses.replace(config, dtype='float32' if on_cpu else 'bfloat16')
  quantizes = on_cpu or dtype == 'int8'

  def convert(path: Any, x: jax.Array) -> Any:
    part, name = path[0].key, path[-1].key
    is_dense = name == 'kernel' and config.kind != 'lstm' and part != classifier.NAME
    if is_dense and quantizes:
      return quantized.quantize(jnp.swapaxes(x, -1, -2), dtype)
    if name == 'lm_head' and quantizes:
      return quantized.quantize(x, dtype)
    casts = name in ('kernel', 'embedding', 'lm_head') and not on_cpu
    return x.astype('bfloat16') if casts else x

  if quantizes and config.tie_embeddings:
    config = dataclasses.replace(config, tie_embeddings=False)
    params = {**params, 'lm_head': params['wte']['embedding']}
  return config, jax.tree_util.tree_map_with_path(convert, params)


def abstract_params(
  config: config_lib.ModelConfig, sharding: jax.sharding.Sharding | None = None
) -> Any:
  """Returns the tree of parameters as shapes and types, each with `sharding` if it is given."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _shapes(config)
  )


@functools.cache
def _shapes(config: config_lib.ModelConfig) -> Any:
  """Traces `init`, which takes seconds for a deep model, once."""
  return jax.eval_shape(lambda key: init(config, key), jax.random.key(0))


def parameter_count(config: config_lib.ModelConfig) -> int:
  """Counts the parameters without the padding of the vocabulary, from shapes alone."""
  leaves = traverse_util.flatten_dict(abstract_params(config))
  padding = config.padded_vocab_size - config.vocab_size
  tables = [leaves[path] for path in _TABLES if path in leaves]
  return sum(x.size for x in leaves.values()) - padding * sum(x.shape[1] for x in tables)


def split_trained(config: config_lib.ModelConfig, params: Any) -> tuple[Any, Any]:
  """Splits parameters into those that are trained and those that are frozen.

  With adapters only they are trained, with `freeze_body` none but the layer of a classifier, which
  always is; a classifier has no use for an output layer.
  """
  adapters, _ = lora.split(params)

  def is_trained(path: tuple[str, ...]) -> bool:
    if path[0] == classifier.NAME:
      return True
    if adapters:
      return path[-1] in lora.NAMES
    return not config.freeze_body and not (config.classes and path[0] in ('lm_head', 'gates'))

  return lora.split_by(params, is_trained)
