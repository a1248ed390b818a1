"""A sliding window scores each token once, with the context that is promised."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import errors
from gpt_jax.data.batches import stream
from gpt_jax.data.tokenizers import char, word
from gpt_jax.evaluation import perplexity

BYTE = char.ByteTokenizer()


def _tokens(ids, *cuts, dtype=np.uint16):
  return stream.Tokens(tuple(np.split(np.array(ids, dtype), cuts)))


def _measure(scorer, ids, stride=1):
  tokens = ids if isinstance(ids, stream.Tokens) else _tokens(ids)
  return perplexity.measure(scorer, tokens, stride=stride, progress=None)


@hypothesis.given(
  num_tokens=st.integers(2, 60), block_size=st.integers(1, 12), share=st.floats(0, 1)
)
def test_each_token_is_scored_once_with_the_context_that_is_promised(num_tokens, block_size, share):
  stride = 1 + int(share * (block_size - 1))
  scored: list[int] = []
  for start, first, stop in perplexity.windows(num_tokens, block_size=block_size, stride=stride):
    assert 0 <= start < first < stop <= start + block_size + 1
    scored += range(first, stop)
    for position in range(first, stop):
      assert position - start >= min(position, block_size - stride + 1)
  assert scored == list(range(1, num_tokens))


@pytest.mark.parametrize('block_size', [2, 5])
def test_the_loss_is_that_of_a_double_loop(scorer, model, log_probs, block_size):

  def alone(ids, stride):
    """Sum of what each token costs, given its exact context, in nats."""
    nats = 0.0
    for i in range(1, len(ids)):
      beyond = i - block_size - 1  # positions behind the first window
      start = 0 if beyond < 0 else (beyond // stride + 1) * stride
      nats -= log_probs(model(block_size), ids[start:i])[-1, ids[i]]
    return nats

  @hypothesis.given(
    ids=st.lists(st.integers(0, 11), min_size=2, max_size=30),
    stride=st.integers(1, block_size),
    cut=st.integers(0, 30),
  )
  @hypothesis.settings(deadline=None, max_examples=25)
  def check(ids, stride, cut):
    found = _measure(scorer(block_size), _tokens(ids, min(cut, len(ids))), stride)
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(alone(ids, stride) / found.tokens, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert (found.block_size, found.stride) == (block_size, stride)
    bits = found.loss * found.tokens / math.log(2) / (len(ids) - 1)
    assert found.bits_per_byte == pytest.approx(bits), 'one byte a letter'

  check()


@hypothesis.given(text=st.text(st.sampled_from('ab é日😀'), min_size=2))
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_bits_per_byte_of_bytes_is_the_loss_in_bits(oracle, text):
  scorer = oracle({i: -0.01 * i for i in range(257)}, BYTE)
  found = _measure(scorer, BYTE.encode(text))
  assert found.bytes == found.tokens == len(text.encode()) - 1
  assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=1e-12)


def test_an_end_of_text_costs_nats_but_spells_no_byte(oracle):
  end = BYTE.end_of_text
  found = _measure(oracle({end: -4.0, 97: -1.0}, BYTE), [97, 97, 97, end, 97])
  assert (found.tokens, found.bytes) == (4, 3)
  assert found.loss == 7 / 4
  assert found.bits_per_byte == pytest.approx(7 / 3 / math.log(2))


def test_special_tokens_that_decode_to_text_spell_none(oracle):
  class Telling(char.CharTokenizer):
    """Like GPT-2's, whose end of text is `<|endoftext|>`."""

    def token_bytes(self, token):
      return 'abé'[token].encode()

  tokenizer = Telling('abé')
  tokenizer.end_of_text = 1
  tokenizer.start_of_text = 0
  assert _measure(oracle({}, tokenizer), [2, 0, 2, 1, 2]).bytes == 4


def test_the_first_token_is_no_text_that_was_scored(oracle):
  assert _measure(oracle({}, char.CharTokenizer('aé')), [1, 0, 0]).bytes == 2
  assert _measure(oracle({}, char.CharTokenizer('aé')), [0, 1, 0]).bytes == 3


def test_tokens_that_do_not_spell_the_text_have_no_bits_per_byte(oracle):
  with_unknown = char.CharTokenizer('abc', ['unk'])
  assert _measure(oracle({}, with_unknown), [3, 0, 1]).bytes == 2
  for tokenizer in (with_unknown, word.WordTokenizer(['a', 'b'], [])):
    found = _measure(oracle({}, tokenizer), [0, 1, 3, 0])
    assert found.bytes is None and found.bits_per_byte is None
    assert 'do not spell' in dict(found.table())['bits per byte']
  assert _measure(oracle({}, word.WordTokenizer(['a', 'b'], [])), [0, 1]).bytes is None


def test_a_text_without_bytes_has_no_bits_per_byte(oracle):
  found = _measure(oracle({}, BYTE), [256, 256])
  assert (found.bytes, found.bits_per_byte) == (0, None)


class _Joining(char.ByteTokenizer):
  """Like a byte-level tokenizer of Hugging Face: a part of a character decodes to U+FFFD."""

  kind = 'hf'

  def token_bytes(self, token):
    return self.decode([token]).encode()


def test_bytes_of_hugging_face_tokens_are_those_of_the_decoded_text(oracle, monkeypatch):
  text = 'a日本語é' * 5
  scorer = oracle({}, _Joining())
  assert _measure(scorer, BYTE.encode(text)).bytes == len(text.encode()) - 1
  monkeypatch.setattr(perplexity, '_BLOCK', 13)  # the text repeats after 12 bytes
  assert _measure(scorer, BYTE.encode('abcd' * 10)).bytes == 39


def test_no_more_than_a_window_or_a_block_is_read(scorer, monkeypatch):
  class Counting(stream.Tokens):
    longest = 0

    def read(self, start, stop):
      Counting.longest = max(Counting.longest, min(stop, len(self)) - start)
      return super().read(start, stop)

  ids = np.arange(1000) % 12
  whole = _measure(scorer(8), _tokens(ids), 4)
  monkeypatch.setattr(perplexity, '_BLOCK', 16)
  assert _measure(scorer(8), Counting((ids.astype(np.uint32),)), 4) == whole
  assert Counting.longest == 16


def test_progress_ends_at_the_whole(scorer):
  told = []
  perplexity.measure(
    scorer(8), _tokens(range(12)), stride=3, progress=lambda *args: told.append(args)
  )
  dones = [done for _, done, _ in told]
  assert dones == sorted(set(dones)) and dones[-1] == 11 and {t for *_, t in told} == {11}


@pytest.mark.parametrize(
  ('ids', 'stride', 'complaint'),
  [
    ([], 1, 'the text has 0 tokens, and at least 2'),
    ([1], 1, 'the text has 1 token, and'),
    ([1, 2], 0, '--stride=0 must be from 1 to 8'),
    ([1, 2], 9, '--stride=9 must be from 1 to 8'),
    ([1] * 20 + [12] + [13], 1, 'token 20 is 12, but the model has 12 ids'),
  ],
)
def test_mistakes_are_told(scorer, monkeypatch, ids, stride, complaint):
  monkeypatch.setattr(perplexity, '_BLOCK', 8)
  with pytest.raises(errors.UserError, match=complaint):
    _measure(scorer(8), ids, stride)
