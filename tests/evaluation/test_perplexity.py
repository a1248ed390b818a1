"""A sliding window scores each token once, with the promised context."""

import math
from unittest import mock

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax.data.batches import stream
from gpt_jax.data.tokenizers import char, word
from gpt_jax.evaluation import perplexity
from tests import raised

BYTE = char.ByteTokenizer()


def _measure(scorer, ids, stride=1, cuts=(), **options):
  tokens = stream.Tokens(tuple(np.split(np.array(ids, np.uint16), cuts)))
  return perplexity.measure(
    scorer, tokens, stride=stride, **{'progress': lambda *_: None, **options}
  )


@hypothesis.given(
  num_tokens=st.integers(2, 60), block_size=st.integers(1, 12), share=st.floats(0, 1)
)
def test_each_token_is_scored_once_with_the_promised_context(num_tokens, block_size, share):
  stride = 1 + int(share * (block_size - 1))
  scored: list[int] = []
  for start, first, stop in perplexity.windows(num_tokens, block_size=block_size, stride=stride):
    assert 0 <= start < first < stop <= start + block_size + 1
    scored += range(first, stop)
    for position in range(first, stop):
      assert position - start >= min(position, block_size - stride + 1)
  assert scored == list(range(1, num_tokens))


@pytest.mark.parametrize('block_size', [2, 5])
def test_the_loss_is_that_of_each_token_with_its_exact_context(scorer, log_probs, block_size):
  @hypothesis.given(
    ids=st.lists(st.integers(0, 11), min_size=2, max_size=30),
    stride=st.integers(1, block_size),
    cut=st.integers(0, 30),
  )
  def check(ids, stride, cut):
    found = _measure(scorer(block_size), ids, stride, [min(cut, len(ids))])
    nats = 0.0
    for i in range(1, len(ids)):
      beyond = i - block_size - 1  # tokens since the first window
      start = 0 if beyond < 0 else (beyond // stride + 1) * stride
      nats -= log_probs(ids[start:i], block_size)[-1, ids[i]]
    assert found.tokens == found.bytes == len(ids) - 1
    assert found.loss == pytest.approx(nats / found.tokens, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert (found.block_size, found.stride) == (block_size, stride)

  check()


@hypothesis.given(text=st.text(st.sampled_from('ab é日😀'), min_size=2))
def test_bits_per_byte_of_bytes_is_the_loss_in_bits(oracle, text):
  scorer = oracle({i: -0.01 * i for i in range(257)}, BYTE)
  found = _measure(scorer, BYTE.encode(text))
  assert found.bytes == found.tokens == len(text.encode()) - 1
  assert found.bits_per_byte == pytest.approx(found.loss / math.log(2), rel=1e-12)


def test_an_end_of_text_counts_in_the_loss_but_spells_no_byte(oracle):
  end = BYTE.eos_id
  found = _measure(oracle({end: -4.0, 97: -1.0}, BYTE), [97, 97, 97, end, 97])
  assert (found.tokens, found.bytes, found.loss) == (4, 3, 7 / 4)
  assert found.bits_per_byte == pytest.approx(7 / 3 / math.log(2))
  assert _measure(oracle({}, BYTE), [end, end]).bits_per_byte is None
  assert math.isfinite(_measure(oracle({1: -1e4}), [1, 1]).perplexity)
  # The first token is not scored, so neither do its bytes count.
  for ids, num_bytes in (([1, 0, 0], 2), ([0, 1, 0], 3)):
    assert _measure(oracle({}, char.CharTokenizer('aé')), ids).bytes == num_bytes


def test_special_tokens_that_decode_to_text_spell_none(oracle):
  class Spelled(char.CharTokenizer):
    """Like GPT-2's, whose end of text is `<|endoftext|>`."""

    def token_bytes(self, token):
      return 'abcé'[token].encode()

  tokenizer = Spelled('abcé')
  tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id = 0, 1, 2
  assert _measure(oracle({}, tokenizer), [3, 0, 3, 1, 2, 3]).bytes == 4


def test_tokens_that_do_not_spell_the_text_have_no_bits_per_byte(oracle):
  with_unknown = char.CharTokenizer('abc', ['unk'])
  assert _measure(oracle({}, with_unknown), [3, 0, 1]).bytes == 2
  words = word.WordTokenizer(['a', 'b'], [], lowercase=False)
  for tokenizer, ids in ((with_unknown, [0, 1, 3, 0]), (words, [0, 1, 0])):
    found = _measure(oracle({}, tokenizer), ids)
    assert (found.bytes, found.bits_per_byte) == (None, None) and found.table()


def test_bytes_of_hugging_face_tokens_are_those_of_the_decoded_text(oracle, monkeypatch):
  class Joining(char.ByteTokenizer):
    """Like byte-level tokenizers of Hugging Face: part of a character decodes to U+FFFD."""

    kind = 'hf'

    def token_bytes(self, token):
      return self.decode([token]).encode()

  text = 'a日本語é' * 5
  scorer = oracle({}, Joining())
  assert _measure(scorer, BYTE.encode(text)).bytes == len(text.encode()) - 1
  monkeypatch.setattr(perplexity, '_BLOCK', 13)  # does not divide the text
  assert _measure(scorer, BYTE.encode('abcd' * 10)).bytes == 39


def test_no_more_than_a_block_is_read_and_progress_ends_at_the_total(oracle, monkeypatch):
  ids, reported = np.arange(1000) % 12, []
  whole = _measure(oracle(), ids, 4, progress=lambda *args: reported.append(args))
  assert reported[0][1:] == (0, 999) and reported[-1][1:] == (999, 999)
  monkeypatch.setattr(perplexity, '_BLOCK', 16)
  read = mock.Mock(wraps=stream.Tokens.read)
  monkeypatch.setattr(stream.Tokens, 'read', lambda *args: read(*args))
  assert _measure(oracle(), ids, 4) == whole
  assert max(min(stop, 1000) - start for (_, start, stop), _ in read.call_args_list) == 16


@pytest.mark.parametrize('ids', [[], [1], [1] * 20 + [12]])
def test_too_few_tokens_and_other_vocabularies_are_refused(oracle, monkeypatch, ids):
  monkeypatch.setattr(perplexity, '_BLOCK', 8)
  error = raised.user_error(_measure, oracle(), ids)
  assert error.key == 'tokens' and (len(ids) < 2 or '12' in str(error))
