"""A text that grows shows whole characters only, nothing twice, and nothing of a stop string."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from gpt_jax.data.tokenizers import char, word
from gpt_jax.generation import rows

TEXTS = strategies.text(alphabet='ab c\n\xe9\u20ac\U0001f600\ufffd', max_size=30)
STOPS = strategies.lists(strategies.text(alphabet='ab \xe9', min_size=1, max_size=3), max_size=3)
LENGTHS = strategies.lists(strategies.integers(0, 5), max_size=12)


def _before(text, stops):
  return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


@hypothesis.given(TEXTS, STOPS, LENGTHS, strategies.booleans())
@hypothesis.example(text='cab', stops=['b', 'ab'], lengths=[], eos=False)
@hypothesis.example(text='aab c', stops=['aab'], lengths=[1, 1], eos=False)
def test_parts_are_whole_characters_and_make_up_the_text_before_the_stop(text, stops, lengths, eos):
  tokenizer = char.ByteTokenizer()
  tokens = tokenizer.encode(text).tolist()
  row, taken = rows.Row([], tokenizer, stop=stops, log_probs=True), 0
  places = np.minimum(np.cumsum(lengths, dtype=int), len(tokens))
  for part in np.split(np.array(tokens, int), places):
    if row.sample.ended:
      break
    shown = row.sample.text or ''
    row.add(part.tolist(), [-1.0] * len(part))
    taken += len(part)
    known = text.encode()[:taken].decode(errors='ignore')
    assert row.sample.text is not None and row.sample.text.startswith(shown)
    assert text.startswith(row.sample.text) and len(row.sample.text) <= len(known)
    assert not any(stop in row.sample.text for stop in stops)
  if not row.sample.ended:
    row.add([256] if eos else [], [-1.0] * eos, ended='eos' if eos else 'length')
  # The first to be whole ends the text; of two at a time, the one that begins first.
  whole = min((text.find(s) + len(s) for s in stops if s in text), default=len(text))
  stopped = any(stop in text for stop in stops)
  assert row.sample.text == _before(text[:whole], stops)
  assert row.sample.ended == ('stop' if stopped else 'eos' if eos else 'length')
  assert row.sample.tokens == tokens[: len(text[:whole].encode())]
  assert row.sample.log_probs == [-1.0] * len(row.sample.tokens)


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
  row = rows.Row([], tokenizer, stop=stops)
  for token in data:
    row.add([token])
  row.add([], ended='length')
  assert row.sample.text == data.decode(errors='replace')
  assert tokenizer.decoded < 300 * len(data)


def _shown(row, tokens):
  """What each token adds to the text."""
  parts = []
  for token in tokens:
    before = len(row.sample.text)
    row.add([token])
    parts.append(row.sample.text[before:])
  return parts


def test_what_is_certain_is_shown_at_once():
  row = rows.Row([], char.ByteTokenizer(), stop=['stop'])
  tokens = char.ByteTokenizer().encode('a st\xe9').tolist()
  assert _shown(row, tokens) == ['a', ' ', '', '', '', 'st\xe9']


def test_bytes_that_are_not_text_are_shown_at_the_end():
  row = rows.Row([], char.ByteTokenizer())
  assert _shown(row, [97, 0xE2, 0x82]) == ['a', '', '']
  row.add([], ended='length')
  assert row.sample.text == 'a\ufffd'
  broken = rows.Row([], char.ByteTokenizer())
  assert ''.join(_shown(broken, [0xFF] * 9)) == '\ufffd' * 6
  broken.add([], ended='length')
  assert broken.sample.text == '\ufffd' * 9


def test_words_are_apart_from_the_prompt_and_from_each_other():
  counts = word.count(['the sea , the sea .'], lowercase=False)
  tokenizer = word.build(counts, min_frequency=1, special_tokens=[], lowercase=False)
  prompt, rest = np.split(tokenizer.encode('the sea' + ', the sea.' * 99), [1])
  parts = _shown(rows.Row(prompt.tolist(), tokenizer), rest.tolist())
  assert parts == [' sea', *[',', ' the', ' sea', '.'] * 99]


@pytest.mark.parametrize('prompt', [[0xC3], [97, 0xE2, 0x82]])
def test_a_prompt_may_end_within_a_character(prompt):
  row = rows.Row(prompt, char.ByteTokenizer())
  row.add([0xA9, 98])
  assert row.sample.text == '\ufffdb'
