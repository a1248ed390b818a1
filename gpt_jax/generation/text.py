"""Text in, text out: a model with its parameters and tokenizer, as `gpt_jax.load` gives it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.generation import beam, contrastive, engine, options, results, speculative
from gpt_jax.generation import prompts as prompts_lib
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.models import gpt

_LOOKS = 16  # tokens after which stop strings are looked for
_PATIENCE = 0.05  # seconds that a stream may take for a part of the text
_BATCH_PATIENCE = 0.5  # the same for a batch, until it tells its progress and can be interrupted

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


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
    prompts: str | Sequence[prompts_lib.Prompt],
    *,
    stop: Sequence[str] = (),
    ban: Sequence[options.Token] = (),
    logit_bias: Mapping[options.Token, float] | None = None,
    draft: 'TextModel | None' = None,
    log_probs: bool = False,
    progress: Progress | None = None,
    **values: Any,
  ) -> list[results.Sample]:
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
    ids = prompts_lib.encode_all(self.config, self.tokenizer, prompts)
    if not ids:
      return []
    self._check_search(ids, settings)
    session = self._session(ids, sampling, settings, draft, log_probs=log_probs)
    rows = [results.Row(self.tokenizer, prompt, stop) for prompt in ids]
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
      row.sample(log_probs=log_probs, slides=slides, guessed=guessed)
      for row, slides, guessed in zip(rows, session.slides, session.guessed, strict=True)
    ]

  def stream(
    self,
    prompt: prompts_lib.Prompt,
    *,
    stop: Sequence[str] = (),
    ban: Sequence[options.Token] = (),
    logit_bias: Mapping[options.Token, float] | None = None,
    draft: 'TextModel | None' = None,
    **values: Any,
  ) -> Generator[str, None, results.Sample]:
    """Continues a prompt, part by part: together the `text` that `generate` gives.

    Parts never break a character. Arguments and errors are those of `generate`. The generator
    returns the `Sample`: what `yield from` gives, or the value of its `StopIteration`.
    """
    settings = options.make(values)
    self._check_draft(draft, settings)
    sampling = self._sampling(settings, stop, ban, logit_bias or {})
    (ids,) = prompts_lib.encode_all(self.config, self.tokenizer, [prompt])
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
  ) -> Generator[str, None, results.Sample]:
    session = self._session([ids], sampling, settings, draft)
    row, count = results.Row(self.tokenizer, ids, stop), _least(settings, draft)
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
    return row.sample(log_probs=False, slides=session.slides[0], guessed=session.guessed[0])

  def encode(self, prompt: prompts_lib.Prompt) -> list[int]:
    """The token ids that a text is continued from, at least one.

    Raises:
      UserError: The model can't read them, or they are more than `block_size`.
    """
    return prompts_lib.encode(self.config, self.tokenizer, prompt)

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
      prompts_lib.check(self.config, row)
    return self._forward(self.params, tokens_BL.astype(np.int32))

  def embed(self, texts: str | Sequence[prompts_lib.Prompt], *, batch_size: int = 32) -> np.ndarray:
    """A vector for each text: the mean of the last hidden states over its tokens.

    Args:
      texts: As the prompts of `generate`.
      batch_size: Texts computed together, at least 1; equally long ones cost least.

    Returns:
      float32 (texts, `n_embd`).

    Raises:
      UserError: Lists every text that is amiss.
    """
    ids = prompts_lib.encode_all(
      self.config, self.tokenizer, [texts] if isinstance(texts, str) else texts
    )
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


def _least(settings: config_lib.GenerationConfig, draft: TextModel | None) -> int:
  """The fewest tokens to ask for at a time: all that a round of guesses can give."""
  return settings.draft_tokens + 1 if draft else 1
