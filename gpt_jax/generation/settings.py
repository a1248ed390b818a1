"""How text is generated, declared as the options of config.py are; imports no JAX."""

import dataclasses

from gpt_jax.knobs import knob as _knob


@dataclasses.dataclass(frozen=True)
class Settings:
  """Options of `gpt_jax.sample`, and arguments of `generate` and `stream`."""

  max_new_tokens: int = _knob(
    500,
    'Maximum new tokens per prompt; the context shifts when it is full.',
    at_least=1,
    at_most=2**31 - 1,
  )
  min_new_tokens: int = _knob(0, 'Minimum new tokens before a text may end.', at_least=0)
  temperature: float = _knob(
    0.8,
    'Softmax temperature: below 1 sharpens, above 1 flattens, 0 is greedy.',
    at_least=0,
    at_most=1e37,
  )
  top_k: int = _knob(200, 'Sample from the k most likely tokens; 0: from all.', at_least=0)
  top_p: float = _knob(
    1.0, 'Sample from the most likely tokens with this total probability.', above=0, at_most=1
  )
  min_p: float = _knob(
    0.0,
    'Sample from tokens at least this likely, relative to the most likely one.',
    at_least=0,
    at_most=1,
  )
  typical_p: float = _knob(
    1.0, 'Sample from the most typical tokens with this total probability.', above=0, at_most=1
  )
  repetition_penalty: float = _knob(
    1.0,
    'Above 1 makes tokens of the prompt and the new text less likely.',
    at_least=1e-3,
    at_most=1e3,
  )
  presence_penalty: float = _knob(
    0.0, 'Subtracted from the logits of tokens in the new text.', at_least=-1e3, at_most=1e3
  )
  frequency_penalty: float = _knob(
    0.0,
    'Subtracted from the logits of tokens in the new text, once per occurrence.',
    at_least=-1e3,
    at_most=1e3,
  )
  no_repeat_ngram: int = _knob(
    0, 'Length of n-grams that may not occur twice in the context; 0: no limit.', at_least=0
  )
  num_beams: int = _knob(
    1, 'Beams; above 1 is beam search, which does not sample.', at_least=1, at_most=1024
  )
  length_penalty: float = _knob(
    1.0, 'Exponent: beams are ranked by log-probability / length ** this.', at_least=-10, at_most=10
  )
  draft_tokens: int = _knob(
    4, 'Tokens that the draft model proposes per round, before one more.', at_least=1, at_most=64
  )
  seed: int = _knob(0, 'Seed of the sampling.', at_least=0, at_most=2**32 - 1)
