"""A text that grows shows whole characters only, nothing twice, and nothing of a stop string."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gpt_jax.data.tokenizers import char, word
from gpt_jax.generation import streaming

TEXTS = strategies.text(alphabet='ab c\n\xe9\u20ac\U0001f600\ufffd', max_size=30)
STOPS = strategies.lists(strategies.text(alphabet='ab \xe9', min_size=1, max_size=3), max_size=3)


def _cut(tokens, lengths):
  """`tokens` in parts of these lengths, and what is left by itself."""
  places = np.minimum(np.cumsum(lengths, dtype=int), len(tokens))
  return [part.tolist() for part in np.split(tokens, places)]


def _before(text, stops):
  return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


@hypothesis.given(TEXTS, STOPS, strategies.lists(strategies.integers(0, 5), max_size=12))
def test_parts_are_whole_characters_and_make_up_the_text_before_the_stop(text, stops, lengths):
  tokenizer = char.ByteTokenizer()
  tokens = tokenizer.encode(text).tolist()
  stream, shown, taken = streaming.TextStream(tokenizer, [], stops), '', 0
  for part in _cut(tokens, lengths):
    shown += stream.add(part)
    taken += len(part)
    known = text.encode()[:taken].decode(errors='ignore')
    assert text.startswith(shown) or stream.stopped
    assert len(shown) <= len(known) and not any(stop in shown for stop in stops)
  shown += stream.finish()
  # The first to be whole ends the text; of two at a time, the one that begins first.
  whole = min((text.find(s) + len(s) for s in stops if s in text), default=len(text))
  assert shown == _before(text[:whole], stops)
  assert stream.stopped == any(stop in text for stop in stops)
  assert stream.tokens == tokens[: len(text[:whole].encode())]


class _Counting(char.ByteTokenizer):
  """Knows how many tokens it has decoded."""

  decoded = 0

  def decode(self, ids):
    self.decoded += len(ids)
    return super().decode(ids)


@pytest.mark.parametrize('stops', [[], ['never, ever']])
@pytest.mark.parametrize('letters', ['ab c', 'n\xe9\u20ac\U0001f600', '\udcff\udcc3a'])
def test_a_long_text_costs_its_length(stops, letters):
  drawn = np.random.default_rng(1).choice(list(letters), 3000)
  data = ''.join(drawn).encode(errors='surrogateescape')  # the last letters are bytes, no text
  tokenizer = _Counting()
  stream, shown = streaming.TextStream(tokenizer, [], stops), ''
  for token in data:
    shown += stream.add([token])
  assert shown + stream.finish() == data.decode(errors='replace')
  assert tokenizer.decoded < 300 * len(data)


def test_what_is_certain_is_shown_at_once():
  stream = streaming.TextStream(char.ByteTokenizer(), [], ['stop'])
  encode = char.ByteTokenizer().encode
  assert [stream.add([token]) for token in encode('a st\xe9').tolist()] == [
    'a', ' ', '', '', '', 'st\xe9',
  ]  # fmt: skip


def test_bytes_that_are_no_text_are_shown_in_the_end():
  stream = streaming.TextStream(char.ByteTokenizer(), [])
  assert stream.add([97, 0xE2, 0x82]) == 'a'
  assert stream.finish() == '\ufffd'
  broken = streaming.TextStream(char.ByteTokenizer(), [])
  shown = ''.join(broken.add([0xFF]) for _ in range(9))
  assert shown == '\ufffd' * 6 and broken.finish() == '\ufffd' * 3


def test_words_are_apart_from_the_prompt_and_from_each_other():
  counts = word.count(['the sea , the sea .'])
  tokenizer = word.build(counts, min_frequency=1, special_tokens=[])
  prompt, rest = np.split(tokenizer.encode('the sea' + ', the sea.' * 99), [2])
  stream = streaming.TextStream(tokenizer, prompt.tolist())
  parts = [stream.add([token]) for token in rest.tolist()]
  assert parts == [',', ' the', ' sea', '.'] * 99


@pytest.mark.parametrize('prompt', [[0xC3], [97, 0xE2, 0x82]])
def test_a_prompt_may_end_within_a_character(prompt):
  stream = streaming.TextStream(char.ByteTokenizer(), prompt)
  assert stream.add([0xA9, 98]).endswith('b')
