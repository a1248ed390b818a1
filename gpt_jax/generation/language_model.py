"""A model with its parameters and tokenizer, as `gpt_jax.load` returns it: text in, text out.

Shapes in names: B batch, L length, D width (n_embd), V vocabulary.
"""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, models
from gpt_jax import progress as progress_lib
from gpt_jax.data import tokenizers
from gpt_jax.generation import beam, decode, loop, options, sampling, speculative
from gpt_jax.generation import prompts as prompts_lib
from gpt_jax.generation import rows as rows_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding
from gpt_jax.weights import saved_model

POOLINGS = ('mean', 'last')
_DTYPES = ('auto', 'float32', 'bfloat16', 'int8')
_STOP_INTERVAL = 16  # tokens after which stop strings are searched for
# Seconds that a call of the device may take, until progress is reported and it can be interrupted:
_STREAM_PATIENCE, _BATCH_PATIENCE = 0.05, 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """A language model to use; inputs and outputs are text or token ids, on the host."""

  config: config_lib.ModelConfig
  params: Any = dataclasses.field(repr=False)
  tokenizer: tokenizers.Tokenizer | None  # if None, prompts are token ids
  step: int | None = None  # of the checkpoint it was read from, if any
  template: str = ''  # how it was trained to read prompts; empty: it was on no conversations

  def generate(
    self,
    prompts: str | Sequence[prompts_lib.Prompt],
    *,
    log_probs: bool = False,
    progress: progress_lib.Report | None = None,
    request: options.Request | None = None,
    **arguments: Any,
  ) -> list[rows_lib.Sample]:
    """Continues each prompt; for several samples of one, repeat it: `generate([prompt] * 5)`.

    A result depends on its prompt, `seed`, and which sample of the prompt it is, not on the others.

    Args:
      prompts: Strings or lists of token ids, each of at most `block_size` tokens; one string is
        a list of one. An empty prompt is the start of a text.
      log_probs: Whether to return the log-probabilities of the new tokens.
      progress: Called with the number of new tokens of the longest text.
      request: What `options.make` returned, instead of `arguments`.
      **arguments: Those of `options.make`: `max_new_tokens`, `temperature`, `stop` and so on. If
        some are invalid, `UserError` names all of them.
    """
    request = _request(request, arguments)
    progress_lib.check(progress)
    ids = prompts_lib.encode_all(self.config, self.tokenizer, prompts)
    rows = [self._row(i, request, log_probs=log_probs) for i in ids]
    for _ in self._run(rows, request, patience=_BATCH_PATIENCE):
      if progress:
        longest = max(len(row.sample.tokens) for row in rows)
        progress('tokens', longest, request.settings.max_new_tokens)
    return [row.sample for row in rows]

  def stream(
    self, prompt: prompts_lib.Prompt, *, request: options.Request | None = None, **arguments: Any
  ) -> Generator[str, None, rows_lib.Sample]:
    """Continues a prompt, part by part; together they are the `text` that `generate` returns.

    Parts never break a character. Arguments and errors, which come at once, are those of
    `generate`. The generator returns the `Sample`, the value of `yield from`.
    """
    request = _request(request, arguments)
    if self.tokenizer is None:
      raise errors.UserError('prompt', 'the model has no tokenizer', 'use generate')
    row = self._row(self.encode(prompt), request)
    steps = self._run([row], request, patience=_STREAM_PATIENCE)

    def parts() -> Generator[str, None, rows_lib.Sample]:
      given = 0
      for _ in steps:
        text = row.sample.text or ''
        if len(text) > given:
          yield text[given:]
        given = len(text)
      return row.sample

    return parts()

  def shown(self, prompt: str) -> str:
    """Returns a prompt as it stands in front of its text: a translation has a line of its own."""
    return f'{prompt}\n' if self.config.kind == 'encoder_decoder' else prompt

  def _row(
    self, prompt: list[int], request: options.Request, *, log_probs: bool = False
  ) -> rows_lib.Row:
    """Returns the text that a prompt begins, or that an encoder–decoder translates it to."""
    source = prompt if self.config.kind == 'encoder_decoder' else []
    ids = [prompts_lib.start(self.tokenizer)] if source else prompt
    made: Any = {'stop': request.stop, 'log_probs': log_probs, 'mask_id': self.config.mask_id}
    return rows_lib.Row(ids, self.tokenizer, source=source, **made)

  def _run(
    self, rows: list[rows_lib.Row], request: options.Request, *, patience: float
  ) -> Iterator[None]:
    """Returns the loop that generates `rows`; raises `UserError` if it doesn't fit the model."""
    self.check_predicts()
    settings, model = request.settings, models.make(self.config)
    if request.stop and self.tokenizer is None:
      raise errors.UserError('stop', 'the model has no tokenizer, so there is no text to stop at')
    if request.draft is not None:
      if not isinstance(request.draft, LanguageModel):
        problem = f'{request.draft!r} must be a model that gpt_jax.load returned'
        raise errors.UserError('draft', problem)
      search = speculative.search(self, request.draft, settings)
    elif settings.num_beams > 1:
      search = beam.search(model, self.params, settings, [row.context for row in rows])
    else:
      search = decode.Search((model,), (self.params,), decode.advance)
    how = sampling.make(
      settings,
      vocab_size=self.config.vocab_size,
      eos_id=self.tokenizer.eos_id if self.tokenizer else None,
      bias_V=options.bias(self.config, self.tokenizer, request),
    )
    return loop.run(
      search,
      rows,
      how,
      max_new_tokens=settings.max_new_tokens,
      patience=patience,
      at_most=_STOP_INTERVAL if request.stop else None,
    )

  def check_predicts(self, fix: str = '', *, key: str = 'model') -> None:
    """Raises `UserError` at `key` unless the model predicts the next token."""
    if self.config.classes:
      problem = f'is a classifier of {", ".join(self.config.class_names)}: it writes no text'
      raise errors.UserError(key, problem, fix or 'use gpt_jax.classify')
    if self.config.kind == 'encoder':
      problem = 'is an encoder, which sees both sides of a token: it predicts no next one'
      raise errors.UserError(key, problem, fix or 'use gpt_jax.inspect')

  def check_plain(self, *, key: str = 'model') -> None:
    """Raises `UserError` at `key` if the model needs a source beside its tokens."""
    if self.config.kind == 'encoder_decoder':
      fix = 'use gpt_jax.sample, without a draft'
      raise errors.UserError(key, 'only translates one text to another', fix)

  def encode(self, prompt: prompts_lib.Prompt) -> list[int]:
    """Returns the token ids of a prompt, at least one; raises `UserError` if it is invalid."""
    return prompts_lib.encode(self.config, self.tokenizer, prompt)

  def logits(self, tokens_BL: np.ndarray | Sequence[Sequence[int]]) -> jax.Array:
    """Returns the logits of the token after each position, float32 (B, L, `vocab_size`).

    L is from 1 to `block_size`; each shape is compiled once. Raises `UserError` for other shapes
    or invalid ids.
    """
    self.check_plain()
    tokens_BL = prompts_lib.as_array(tokens_BL)
    if tokens_BL.ndim != 2 or not tokens_BL.size:
      problem = 'must be lists of token ids, all of one length: (batch, length)'
      raise errors.UserError('tokens_BL', problem)
    for row in tokens_BL:
      prompts_lib.check(self.config, row, key='tokens_BL')
    return _logits(models.make(self.config), self.params, tokens_BL.astype(np.int32))

  def embed(
    self,
    texts: str | Sequence[prompts_lib.Prompt],
    *,
    pooling: str = 'mean',
    batch_size: int = 32,
    progress: progress_lib.Report | None = None,
  ) -> np.ndarray:
    """Returns the last hidden states of each text, pooled: float32 (texts, `hidden_width`).

    Args:
      texts: Strings or lists of token ids, as the prompts of `generate` but of any length: they are
        read in windows of `block_size` tokens, which don't attend to each other.
      pooling: The `mean` of all positions, or the `last` one.
      batch_size: Windows that are computed together.
      progress: Called with the number of windows that are done.

    Raises:
      UserError: A text or another argument is invalid.
    """
    self.check_plain()
    if not isinstance(batch_size, int) or batch_size < 1:
      raise errors.UserError('batch_size', f'{batch_size!r} must be a whole number, at least 1')
    if pooling not in POOLINGS:
      raise errors.UserError('pooling', f'{pooling!r} must be one of {", ".join(POOLINGS)}')
    progress_lib.check(progress)
    endless, size = dataclasses.replace(self.config, block_size=sys.maxsize), self.config.block_size
    ids = prompts_lib.encode_all(endless, self.tokenizer, texts, key='texts')
    of_each = [range(0, len(row), size)[0 if pooling == 'mean' else -1 :] for row in ids]
    windows = [(n, ids[n][i : i + size]) for n, starts in enumerate(of_each) for i in starts]
    windows.sort(key=lambda window: len(window[1]))
    batch_size = min(batch_size, 1 << (len(windows) - 1).bit_length())  # few programs compile
    pooled = np.zeros((len(ids), self.config.hidden_width), np.float32)
    for done in range(0, len(windows), batch_size):
      rows, parts = zip(*windows[done : done + batch_size], strict=True)
      L = loop.bucket(len(parts[-1]), size)
      tokens_BL, length_B = np.zeros((batch_size, L), np.int32), np.ones(batch_size, np.int32)
      for row, part in enumerate(parts):
        tokens_BL[row, : len(part)], length_B[row] = part, len(part)
      model = models.make(self.config)
      pooled_BD = _pooled_hidden(model, self.params, tokens_BL, length_B, pooling=pooling)
      np.add.at(pooled, list(rows), np.asarray(pooled_BD)[: len(rows)])
      if progress:
        progress('reading', done + len(rows), len(windows))
    if pooling == 'mean':
      pooled /= np.array([[len(row)] for row in ids], np.float32).reshape(-1, 1)
    return pooled


def _request(request: options.Request | None, arguments: dict[str, Any]) -> options.Request:
  if request is None:
    return options.make(**arguments)
  if arguments or not isinstance(request, options.Request):
    problem = 'must be what options.make returned, without other options'
    raise errors.UserError('request', problem)
  return request


@functools.partial(jax.jit, static_argnames='model')
def _logits(model: models.Model, params: Any, tokens_BL: jax.Array) -> jax.Array:
  logits_BLV, _ = model.apply({'params': params}, tokens_BL)
  return logits_BLV[..., : model.config.vocab_size]


@functools.partial(jax.jit, static_argnames=('model', 'pooling'))
def _pooled_hidden(
  model: models.Model, params: Any, tokens_BL: jax.Array, length_B: jax.Array, *, pooling: str
) -> jax.Array:
  """The sum of the hidden states of the first `length_B` positions, or the last of them."""
  last_B1, place_L = length_B[:, None] - 1, jnp.arange(tokens_BL.shape[1])
  options: dict[str, Any] = {}
  if model.config.kind == 'encoder':  # which would see the padding
    options['segments_BL'] = (place_L <= last_B1).astype(jnp.int32)
  hidden_BLD, _ = model.apply({'params': params}, tokens_BL, method='hidden', **options)
  chosen_BL = place_L <= last_B1 if pooling == 'mean' else place_L == last_B1
  return jnp.einsum('BLD,BL->BD', hidden_BLD.astype(jnp.float32), chosen_BL.astype(jnp.float32))


def load(
  path: str | os.PathLike[str], *, dtype: str = 'auto', mesh: config_lib.MeshConfig | None = None
) -> LanguageModel:
  """Reads a model onto devices. No code from `path` runs, nothing is unpickled.

  Args:
    path: A run's workdir, one checkpoint in it, or a model directory of Hugging Face or OpenAI; see
      `saved_model.open_model`.
    dtype: The type of the matrices: float32, bfloat16, int8 (with a float32 scale for each output),
      or auto: the type the model was trained in (others: float32), but float32 on a CPU. A CPU
      computes the rest in float32, an accelerator in bfloat16.
    mesh: How several devices share the model: `fsdp` and `tensor` shard its parameters, and
      measurements split their batches over `data` × `fsdp`. None is the first device.

  Raises:
    UserError: There is no model, it is damaged, there is no such `dtype`, or `mesh` doesn't fit the
      model or the devices.
  """
  if dtype not in _DTYPES:
    raise errors.UserError('dtype', f'{dtype!r} must be one of {", ".join(_DTYPES)}')
  saved = saved_model.open_model(path)
  device = mesh_lib.find_devices()[0]
  if dtype == 'auto':
    dtype = 'float32' if device.platform == 'cpu' else saved.config.dtype
  # Decoding has its own attention, and the machine need not be the one that trained.
  config = dataclasses.replace(saved.config, attention='xla')
  if mesh is None:
    abstract = models.abstract_params(config, jax.sharding.SingleDeviceSharding(device))
  else:
    config = dataclasses.replace(config, pad_vocab_to=math.lcm(config.pad_vocab_to, mesh.tensor))
    abstract = _sharded(config, mesh)
  config, params = models.for_inference(config, saved.load(abstract), dtype)
  return LanguageModel(config, params, saved.tokenizer, saved.step, saved.template)


def _sharded(model: config_lib.ModelConfig, mesh: config_lib.MeshConfig) -> Any:
  """Returns abstract parameters on the first devices, as many as the axes of `mesh` multiply to."""
  devices = mesh_lib.find_devices()
  if mesh.data > 0:
    devices = devices[: mesh.data * mesh.fsdp * mesh.tensor]
  train = config_lib.TrainConfig(batch_size=len(devices) * mesh.fsdp)  # any that is divisible
  config = config_lib.Config(model=model, train=train, mesh=mesh)
  return sharding.place(mesh_lib.make_mesh(config, devices), models.abstract_params(model))
