"""Text in, text out: a model with its parameters and tokenizer, as `gpt_jax.load` gives it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data import tokenizers
from gpt_jax.generation import beam, contrastive, engine, options, speculative, streaming
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import gpt

_LOOKS = 16  # tokens after which stop strings are looked for
_PATIENCE = 0.05  # seconds that a stream may take for a part of the text
_BATCH_PATIENCE = 0.5  # the same for a batch, until it tells its progress and can be interrupted

Prompt = str | Sequence[int] | np.ndarray
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclasses.dataclass(frozen=True)
class Sample:
  """What the model adds to a prompt.

  Attributes:
    text: `tokens` decoded, up to a stop string; None if the model has no tokenizer.
    tokens: The new token ids, without the end of the text; up to the one that completed a stop
      string.
    log_probs: Natural logarithms of their probabilities under the model alone (temperature 1, no
      processors); None unless asked for.
    ended: Why there are no more: `end_of_text`, `stop` or `length`.
    slides: Times that the context slid: see `engine.Session`.
  """

  text: str | None
  tokens: list[int]
  log_probs: list[float] | None
  ended: str
  slides: int


@dataclasses.dataclass(frozen=True, eq=False)
class TextModel:
  """A language model to use: everything here is in tokens or text, on the host.

  Attributes:
    config: The architecture, with a resolved `vocab_size`.
    params: The parameters, as `models.gpt.GPT` names them.
    tokenizer: None where the model came without one; prompts are token ids then.
  """

  config: config_lib.ModelConfig
  params: Any = dataclasses.field(repr=False)
  tokenizer: tokenizers.Tokenizer | None

  def generate(
    self,
    prompts: str | Sequence[Prompt],
    *,
    stop: Sequence[str] = (),
    ban: Sequence[options.Token] = (),
    logit_bias: Mapping[options.Token, float] | None = None,
    draft: 'TextModel | None' = None,
    log_probs: bool = False,
    progress: Progress | None = None,
    **values: Any,
  ) -> list[Sample]:
    """Continues each prompt; for several samples of one, repeat it: `generate([prompt] * 5)`.

    All are computed together. A result depends on its prompt, `seed`, and which copy of the prompt
    it is, not on the other prompts nor on how many there are.

    Args:
      prompts: Strings or lists of token ids, each of at most `block_size` tokens; one string is
        a list of one. An empty prompt is the start of a text.
      stop: Strings that end a text, which doesn't contain them.
      ban: Tokens that never come, as ids or as text that is one token.
      logit_bias: What is added to the logits of tokens.
      draft: A smaller model with the same vocabulary, whose guesses spare time. The text is as
        likely as without it, and at temperature 0 the same.
      log_probs: Whether to give the log-probabilities of the new tokens.
      progress: Is told how many new tokens the longest text has, from the first one on.
      **values: `max_new_tokens`, `temperature`, `top_k` and so on, see `config.GenerationConfig`.

    Raises:
      UserError: Lists every prompt and option that is amiss.
    """
    if isinstance(prompts, str):
      prompts = [prompts]
    settings = options.make(values)
    self._check_draft(draft, settings)
    sampling = self._sampling(settings, stop, ban, logit_bias or {})
    ids = self._all_ids(prompts)
    if not ids:
      return []
    self._check_search(ids, settings)
    session = self._session(ids, sampling, settings, draft, log_probs=log_probs)
    rows = [_Row(self, prompt, stop) for prompt in ids]
    count, done = _least(settings, draft), 0
    while not session.done:
      began = time.monotonic()
      added = session.advance(min(count, _LOOKS) if stop else count)
      for row, (tokens, values_of_tokens) in zip(rows, added, strict=True):
        row.add(tokens, values_of_tokens)
      session.end(i for i, row in enumerate(rows) if row.stopped)
      done += max(len(tokens) for tokens, _ in added)
      if progress:
        progress('tokens', done, settings.max_new_tokens)
      if time.monotonic() - began < _BATCH_PATIENCE / 2:
        count *= 2
    return [
      row.sample(log_probs=log_probs, slides=slides)
      for row, slides in zip(rows, session.slides, strict=True)
    ]

  def stream(
    self,
    prompt: Prompt,
    *,
    stop: Sequence[str] = (),
    ban: Sequence[options.Token] = (),
    logit_bias: Mapping[options.Token, float] | None = None,
    draft: 'TextModel | None' = None,
    **values: Any,
  ) -> Generator[str, None, Sample]:
    """Continues a prompt, part by part: together the `text` that `generate` gives.

    Parts never break a character. Arguments and errors are those of `generate`. The generator
    returns the `Sample`: what `yield from` gives, or the value of its `StopIteration`.
    """
    settings = options.make(values)
    self._check_draft(draft, settings)
    sampling = self._sampling(settings, stop, ban, logit_bias or {})
    (ids,) = self._all_ids([prompt])
    self._check_search([ids], settings)
    if self.tokenizer is None:
      raise errors.UserError('the model has no tokenizer, and so no text to stream: use generate')
    return self._parts(ids, sampling, settings, stop, draft)

  def _parts(
    self,
    ids: list[int],
    sampling: sampling_lib.Sampling,
    settings: config_lib.GenerationConfig,
    stop: Sequence[str],
    draft: 'TextModel | None',
  ) -> Generator[str, None, Sample]:
    session = self._session([ids], sampling, settings, draft)
    row, count = _Row(self, ids, stop), _least(settings, draft)
    while not session.done and not row.stopped:
      began = time.monotonic()
      ((tokens, _),) = session.advance(count)
      part = row.add(tokens, [])
      if part:
        yield part
      # A call costs the host about as much as a small model's token.
      if time.monotonic() - began < _PATIENCE / 2:
        count *= 2
    if part := row.finish():
      yield part
    return row.sample(log_probs=False, slides=session.slides[0])

  def encode(self, prompt: Prompt) -> list[int]:
    """The token ids that a text is continued from, at least one.

    Raises:
      UserError: The model can't read them, or they are more than `block_size`.
    """
    if isinstance(prompt, str):
      if not self.tokenizer:
        raise errors.UserError('the model has no tokenizer: give lists of token ids, not text')
      prompt = self.tokenizer.encode(prompt)
      if self.tokenizer.start_of_text is not None:
        prompt = np.concatenate([[self.tokenizer.start_of_text], prompt])
    ids = np.asarray(prompt)
    if ids.ndim != 1:
      raise errors.UserError(f'{prompt!r} must be text or a list of token ids')
    if not ids.size:
      return [self._start()]
    self._check(ids)
    return ids.tolist()

  def logits(self, tokens_BL: np.ndarray | Sequence[Sequence[int]]) -> jax.Array:
    """Logits of the token after each position, float32 (B, L, `vocab_size`).

    Args:
      tokens_BL: Token ids, L from 1 to `block_size`; each new shape is compiled once.

    Raises:
      UserError: The shape or an id is out of range.
    """
    tokens_BL = np.asarray(tokens_BL)
    if tokens_BL.ndim != 2 or not tokens_BL.size:
      raise errors.UserError(f'tokens of shape {tokens_BL.shape}: it must be (batch, length)')
    for row in tokens_BL:
      self._check(row)
    return self._forward(self.params, tokens_BL.astype(np.int32))

  def embed(self, texts: str | Sequence[Prompt], *, batch_size: int = 32) -> np.ndarray:
    """A vector for each text: the mean of the last hidden states over its tokens.

    Args:
      texts: As the prompts of `generate`.
      batch_size: Texts computed together, at least 1; equally long ones cost least.

    Returns:
      float32 (texts, `n_embd`).

    Raises:
      UserError: Lists every text that is amiss.
    """
    ids = self._all_ids([texts] if isinstance(texts, str) else texts)
    vectors = np.zeros((len(ids), self.config.n_embd), np.float32)
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for begin in range(0, len(ids), max(1, batch_size)):
      rows = by_length[begin : begin + batch_size]
      tokens_BL = np.zeros((batch_size, self._engine.bucket(len(ids[rows[-1]]))), np.int32)
      length_B = np.ones(batch_size, np.int32)
      for row, i in enumerate(rows):
        tokens_BL[row, : len(ids[i])], length_B[row] = ids[i], len(ids[i])
      vectors[rows] = self._mean_hidden(self.params, tokens_BL, length_B)[: len(rows)]
    return vectors

  @functools.cached_property
  def _mean_hidden(self) -> Any:
    model = gpt.GPT(self.config)

    def mean(params: Any, tokens_BL: jax.Array, length_B: jax.Array) -> jax.Array:
      _, hidden_BLD, _ = gpt.with_hidden(model, params, tokens_BL)
      known_BL1 = (np.arange(tokens_BL.shape[1]) < length_B[:, None])[..., None]
      return (hidden_BLD.astype(np.float32) * known_BL1).sum(1) / length_B[:, None]

    return jax.jit(mean)

  @functools.cached_property
  def _engine(self) -> engine.Engine:
    return engine.Engine(self.config, self.params)

  @functools.cached_property
  def _forward(self) -> Any:
    model, vocab_size = gpt.GPT(self.config), self.config.vocab_size
    return jax.jit(lambda params, t_BL: model.apply({'params': params}, t_BL)[0][..., :vocab_size])

  @property
  def end_of_text(self) -> int | None:
    """The token that ends a text; None if there is none."""
    return self.tokenizer.end_of_text if self.tokenizer else None

  def _check_draft(self, draft: 'TextModel | None', settings: config_lib.GenerationConfig) -> None:
    if draft is None:
      return
    if not isinstance(draft, TextModel):
      raise errors.UserError(f'draft: {draft!r} must be a model, as gpt_jax.load gives it')
    for name, on in [
      ('num_beams', settings.num_beams > 1),
      ('contrastive_alpha', settings.contrastive_alpha > 0),
    ]:
      if on:
        raise errors.UserError(f'draft: contradicts {name}, which does not guess: leave one out')
    speculative.check(self.config, self.tokenizer, draft.config, draft.tokenizer)

  def _check_search(self, ids: list[list[int]], settings: config_lib.GenerationConfig) -> None:
    if settings.num_beams > 1:
      beam.check(
        self.config, ids, num_beams=settings.num_beams, max_new_tokens=settings.max_new_tokens
      )
    if settings.contrastive_alpha:
      contrastive.check(self.config)

  def _session(
    self,
    ids: list[list[int]],
    sampling: sampling_lib.Sampling,
    settings: config_lib.GenerationConfig,
    draft: 'TextModel | None',
    *,
    log_probs: bool = False,
  ) -> engine.Session:
    make: Any = functools.partial(engine.Session, self._engine)
    if settings.num_beams > 1:
      make = functools.partial(
        beam.Session,
        self._engine,
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
      )
    elif settings.contrastive_alpha:
      make = functools.partial(
        contrastive.Session,
        self._engine,
        alpha=settings.contrastive_alpha,
        candidates=settings.top_k,
      )
    elif draft is not None:
      make = functools.partial(
        speculative.Session, self._engine, draft._engine, draft_tokens=settings.draft_tokens
      )
    return make(ids, sampling, max_new_tokens=settings.max_new_tokens, log_probs=log_probs)

  def _sampling(
    self,
    settings: config_lib.GenerationConfig,
    stop: Sequence[str],
    ban: Sequence[options.Token],
    logit_bias: Mapping[options.Token, float],
  ) -> sampling_lib.Sampling:
    if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
      raise errors.UserError(f'stop: {stop!r} must be a list of strings, none of them empty')
    if stop and self.tokenizer is None:
      raise errors.UserError('stop: the model has no tokenizer, and so no text to stop at')
    config = self.config
    bias_V = options.bias(
      self.tokenizer,
      config.vocab_size,
      config.padded_vocab_size,
      ban=ban,
      logit_bias=logit_bias,
    )
    return sampling_lib.make(
      settings, vocab_size=config.vocab_size, end_of_text=self.end_of_text, bias_V=bias_V
    )

  def _all_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
    """The token ids of all prompts; raises `UserError` that names those that are amiss."""
    ids = []
    complaints: dict[str, int] = {}  # with the first prompt that each is about
    for i, prompt in enumerate(prompts):
      try:
        ids.append(self.encode(prompt))
      except errors.UserError as error:
        complaints.setdefault(str(error), i)
    validation.fail([f'prompts[{i}]: {complaint}' for complaint, i in complaints.items()])
    return ids

  def _start(self) -> int:
    """The token of an empty prompt: what stands before a text, a newline, or token 0."""
    if self.tokenizer and self.tokenizer.start_of_text is not None:
      return self.tokenizer.start_of_text
    if self.end_of_text is not None:
      return self.end_of_text
    try:
      return int(self.tokenizer.encode('\n')[0]) if self.tokenizer else 0
    except errors.UserError:  # a vocabulary without newline
      return 0

  def _check(self, ids_L: np.ndarray) -> None:
    """Raises `UserError` unless the model can read `ids_L`."""
    if not np.issubdtype(ids_L.dtype, np.integer):
      raise errors.UserError(f'token ids are {ids_L.dtype}, must be integers')
    outside = ids_L[(ids_L < 0) | (ids_L >= self.config.vocab_size)]
    if outside.size:
      raise errors.UserError(
        f'token id {outside[0]} is outside the vocabulary: 0 to {self.config.vocab_size - 1}'
      )
    if ids_L.size > self.config.block_size:
      raise errors.UserError(
        f'{ids_L.size} tokens, at most {self.config.block_size} (the block_size) fit'
      )


def _least(settings: config_lib.GenerationConfig, draft: TextModel | None) -> int:
  """The fewest tokens to ask for at a time: all that a round of guesses can give."""
  return settings.draft_tokens + 1 if draft else 1


class _Row:
  """A text in the making, in tokens and, if the model has a tokenizer, in characters."""

  def __init__(self, model: TextModel, prompt: list[int], stop: Sequence[str]):
    self._end_of_text = model.end_of_text
    self._tokens: list[int] = []
    self._log_probs: list[float] = []
    self._parts: list[str] = []
    self._ended = 'length'
    tokenizer = model.tokenizer
    self._stream = streaming.TextStream(tokenizer, prompt, stop) if tokenizer else None

  @property
  def stopped(self) -> bool:
    return self._ended == 'stop'

  def add(self, tokens: list[int], log_probs: list[float]) -> str:
    """Takes new tokens; returns the text that is certain now."""
    if tokens and tokens[-1] == self._end_of_text:
      tokens, self._ended = tokens[:-1], 'end_of_text'
    self._tokens += tokens
    self._log_probs += log_probs
    if self._stream is None:
      return ''
    self._parts.append(self._stream.add(tokens))
    if self._stream.stopped:
      self._tokens, self._ended = self._stream.tokens, 'stop'
    return self._parts[-1]

  def finish(self) -> str:
    """The rest of the text."""
    self._parts.append(self._stream.finish() if self._stream else '')
    return self._parts[-1]

  def sample(self, *, log_probs: bool, slides: int) -> Sample:
    """All of it."""
    self.finish()
    text = ''.join(self._parts) if self._stream else None
    known = self._log_probs[: len(self._tokens)] if log_probs else None
    return Sample(text, self._tokens, known, self._ended, slides)
