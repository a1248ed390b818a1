"""Speculative decoding: a small draft model proposes tokens, the model verifies them all at once.

Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding" (arXiv
2211.17192), and Chen et al. 2023 (arXiv 2302.01318). The text has the distribution that the model
alone gives it, and at temperature 0 it is the same text, whatever the draft proposes.

Both papers take one more token from the model if it accepted all proposals. Here the draft proposes
that one too, in the step that it needs anyway to see its last proposal. So each token is a function
of what comes before it and of its number, and not of where a round begins: a text is the same
however many tokens are asked for at a time.

Shapes in names: B rows, V vocabulary (padded), G proposals of a round, C choices.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from gpt_jax import errors, models
from gpt_jax.generation import decode
from gpt_jax.generation import sampling as sampling_lib
from gpt_jax.generation import settings as settings_lib
from gpt_jax.generation import state as state_lib
from gpt_jax.models import quantized

if TYPE_CHECKING:
  from gpt_jax.generation import language_model

# What the key of a token is folded with, for each of its draws.
_PROPOSE, _ACCEPT, _REPLACE = range(3)


def search(
  model: 'language_model.LanguageModel',
  draft: 'language_model.LanguageModel',
  settings: settings_lib.Settings,
) -> decode.Search:
  """Returns speculative decoding; raises `UserError` if the draft model doesn't fit the model."""
  config, other = model.config, draft.config
  if settings.num_beams > 1:
    raise errors.UserError('draft', 'cannot be combined with `num_beams`')
  model.check_plain()
  draft.check_plain(key='draft')
  draft.check_predicts('name another', key='draft')
  hashes = [m.tokenizer.hash if m.tokenizer else None for m in (model, draft)]
  if hashes[0] != hashes[1] or config.vocab_size != other.vocab_size:
    fix = 'use a model trained with the same tokenizer'
    raise errors.UserError('draft', 'its vocabulary is another one', fix)
  if other.block_size < config.block_size:
    problem = f'its context of {other.block_size} tokens is shorter than that of the model'
    raise errors.UserError('draft', problem, f'it must be at least {config.block_size}')
  G = settings.draft_tokens + 1
  return decode.Search(
    models=(models.make(config), models.make(other)),
    params=(model.params, draft.params),
    advance=functools.partial(advance, num_proposals=G),
    step=G,
    lookahead=G,
  )


@functools.partial(
  quantized.Jit, static_argnames=('models', 'num_proposals'), donate_argnames='state'
)
def advance(
  models: tuple[models.Model, models.Model],
  params: tuple[Any, Any],
  state: state_lib.State,
  sampling: sampling_lib.Sampling,
  target_length: jax.typing.ArrayLike,
  *,
  num_proposals: int,
) -> state_lib.State:
  """As `decode.advance`; a round adds 1 to `num_proposals` (G) tokens to each row.

  The caches need room for G more tokens than are kept.
  """
  width = models[0].config.padded_vocab_size

  def propose(draft: state_lib.State, _: None) -> tuple[state_lib.State, Any]:
    logits_BV, draft = decode.next_logits(models[1], params[1], draft)
    # The two vocabularies may be padded to different widths.
    logits_BV = logits_BV[:, : models[1].config.vocab_size]
    padding = ((0, 0), (0, width - logits_BV.shape[1]))
    logits_BV = jnp.pad(logits_BV, padding, constant_values=-jnp.inf)
    choices = sampling_lib.process(sampling, logits_BV, draft)
    token_B = sampling_lib.draw(sampling, choices, draft.token_keys(_PROPOSE))
    # In all rows: only the model decides whether a text ends.
    everywhere_B = jnp.ones(token_B.size, bool)
    return decode.add(sampling, draft, token_B, everywhere_B, logits_BV), (token_B, choices)

  def add_tokens(state: state_lib.State) -> state_lib.State:
    cache, draft_cache = state.caches
    draft = state._replace(caches=(draft_cache,), log_probs_BM=None)
    draft, proposals = jax.lax.scan(propose, draft, length=num_proposals)
    # What the proposals come after: the last known token, and all of them but the last.
    place_BG = cache.length_B[:, None] + jnp.arange(num_proposals)
    before_BG = jnp.take_along_axis(draft.tokens_BM, place_BG, axis=1)
    logits_BGV, cache = decode.apply(models[0], params[0], before_BG, cache)
    state = state._replace(caches=(cache,))
    state = _verify_all(sampling, state, logits_BGV, proposals, target_length)
    length_B = state.caches[0].length_B
    return state._replace(caches=(*state.caches, draft.caches[0]._replace(length_B=length_B)))

  return jax.lax.while_loop(
    lambda state: decode.active(state, target_length).any(), add_tokens, state
  )


def _verify_all(
  sampling: sampling_lib.Sampling,
  state: state_lib.State,
  logits_BGV: jax.Array,
  proposals: tuple[jax.Array, sampling_lib.Choices],
  target_length: jax.typing.ArrayLike,
) -> state_lib.State:
  """Adds to each row the proposals up to the first refused one, and a token in its place.

  Processors see each proposal with the text before it, as in decoding without a draft.
  """

  def verify_next(carry: tuple[Any, ...]) -> tuple[Any, ...]:
    g, open_B, state = carry
    proposal_B, draft_choices = jax.tree.map(lambda x: x[g], proposals)
    choices = sampling_lib.process(sampling, logits_BGV[:, g], state)
    keys = state.token_keys(_ACCEPT), state.token_keys(_REPLACE)
    width = logits_BGV.shape[-1]
    token_B, accepted_B = verify(sampling, choices, draft_choices, proposal_B, keys, width)
    added = decode.add(sampling, state, token_B, open_B, logits_BGV[:, g])
    added = added._replace(accepted_B=state.accepted_B + (open_B & accepted_B))
    return g + 1, open_B & accepted_B & decode.active(added, target_length), added

  start = 0, decode.active(state, target_length), state
  return jax.lax.while_loop(
    lambda carry: (carry[0] < logits_BGV.shape[1]) & carry[1].any(), verify_next, start
  )[2]


def verify(
  sampling: sampling_lib.Sampling,
  p: sampling_lib.Choices,
  q: sampling_lib.Choices,
  proposal_B: jax.Array,
  keys: tuple[jax.Array, jax.Array],
  vocab_size: int,
) -> tuple[jax.Array, jax.Array]:
  """Draws tokens from p, the choices of the model, which are proposals as often as possible.

  A proposal, drawn from q, is accepted with probability min(1, p / q); if not, a token is drawn
  from max(0, p - q), normalised. Leviathan et al. 2023, §2.3; that it is exact: Chen et al. 2023,
  theorem 1. There is a key for each of the two draws. Returns token_B, int32, -1 if none is
  possible, and accepted_B, bool.
  """
  p_BV, q_BV = (choices.probabilities(vocab_size) for choices in (p, q))
  p_B1, q_B1 = (jnp.take_along_axis(x_BV, proposal_B[:, None], axis=1) for x_BV in (p_BV, q_BV))
  accepted_B = jax.vmap(jax.random.uniform)(keys[0]) * q_B1[:, 0] < p_B1[:, 0]
  rest_BC = jnp.maximum(p_BV - q_BV, 0)
  # Of two equal distributions, rounding can refuse a proposal, and then nothing is left.
  rest_BC = jnp.where(rest_BC.any(-1, keepdims=True), rest_BC, p_BV)
  if p.ids_BC is not None:
    rest_BC = jnp.take_along_axis(rest_BC, p.ids_BC, axis=1)
  rest = sampling_lib.Choices(jnp.log(rest_BC), p.ids_BC)
  other_B = sampling_lib.draw(sampling, rest, keys[1])
  return jnp.where(accepted_B, proposal_B, other_B), accepted_B
