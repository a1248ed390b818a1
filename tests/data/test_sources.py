"""A spec gives its parts in order, a mixture is parsed, and invalid text is found or replaced."""

import pickle

import hypothesis
import hypothesis.strategies as st
import pytest

from gpt_jax.data import sources
from tests import raised
from tests.data import documents


def test_the_builtin_text_is_prose_in_a_fixed_order(monkeypatch):
  spec = 'builtin:python-reference'
  source = sources.open_source(spec, text_field='text')
  (part,) = pickle.loads(pickle.dumps(source.parts))
  pieces = list(part.read())
  assert len(pieces) > 50 and all(piece.last for piece in pieces)
  assert part.size == sum(len(piece.text) for piece in pieces) > 300_000
  assert pieces == list(source.parts[0].read())
  assert pieces[0].text.startswith(b'The "assert" statement') and 'assert' in pieces[0].place
  places = [piece.place for piece in pieces]
  assert places == sorted(set(places))
  topics, old = sources.pydoc_data.topics.topics, documents.fingerprint(spec)
  first, second, *_ = sorted(topics)
  monkeypatch.setitem(topics, first, topics[first] + topics[second][0])
  monkeypatch.setitem(topics, second, topics[second][1:])
  assert documents.fingerprint(spec) != old, 'only the border between two documents moved'


@pytest.mark.parametrize('spec', ['txt:a.txt', 'TFDS:pg19', 'builtin:x', '', 'jsonl:'])
def test_an_unknown_source_is_refused(spec):
  assert documents.error(spec).key == 'data.source'


class TestMixture:
  def test_is_parsed(self):
    parse = sources.parse_mixture
    assert parse('2 * text:a + 1e-1 * tokens:b') == [(2, 'text:a'), (0.1, 'tokens:b')]
    assert parse('3*text:*.txt + 1*text:x*y') == [(3, 'text:*.txt'), (1, 'text:x*y')]
    for single in ('text:C + D.txt', 'text:a + b:c', 'text:a+text:b', 'nonsense', ''):
      assert parse(single) == [(None, single)]

  @hypothesis.given(
    st.lists(
      st.tuples(
        st.floats(min_value=1e-9, max_value=1e9),
        st.builds(
          '{}:{}'.format,
          st.sampled_from(['builtin', 'text', 'jsonl', 'parquet', 'tfds', 'tokens']),
          st.text('ab/.*-_ 0\n', min_size=1),
        ),
      ),
      min_size=1,
      unique_by=lambda pair: pair[1],
    )
  )
  def test_parsing_is_the_inverse_of_writing(self, pairs):
    assert sources.parse_mixture(' + '.join(f'{w!r}*{spec}' for w, spec in pairs)) == pairs
    specs = [spec for _, spec in pairs]
    assert sources.parse_mixture(' + '.join(specs)) == [(None, spec) for spec in specs]

  @pytest.mark.parametrize(
    ('source', 'culprit'),
    [
      *((f'1*text:b + {weight}*text:a', 'text:a') for weight in ('0', '-1', 'nan', 'inf', 'half')),
      ('1*text:a + text:b', 'text:b'),
      ('text:a + 1*text:b', 'text:a'),
      ('text:a + text:b + text:a', 'text:a'),
      ('0.3*text:a + 0.7*text:a', 'text:a'),
    ],
  )
  def test_an_invalid_one_is_refused(self, source, culprit):
    error = raised.user_error(sources.parse_mixture, source)
    assert error.key == 'data.source' and culprit in error.problem


def decode(text, policy='replace'):
  return sources.decode(sources.Piece('x.txt', text), invalid_utf8=policy)


class TestDecode:
  @hypothesis.given(st.binary())
  def test_invalid_bytes_are_replaced_as_unicode_says_or_refused(self, data):
    text, count = decode(data)
    assert text == data.decode('utf-8', 'replace')
    if count:
      assert raised.user_error(decode, data, 'fail').key == 'x.txt'
    else:
      assert text.encode() == data and decode(data, 'fail') == (text, 0)

  @hypothesis.example(['\ufffd', None])  # one of the text is valid
  @hypothesis.given(st.lists(st.one_of(st.just(None), st.text()), max_size=6))
  def test_invalid_places_are_counted(self, parts):
    data = b' '.join(b'\xe9' if part is None else part.encode() for part in parts)
    lone = ' '.join('\udce9' if part is None else part for part in parts)
    whole = ' '.join('\ufffd' if part is None else part for part in parts)
    assert decode(data) == decode(lone) == (whole, parts.count(None))

  @pytest.mark.parametrize(
    ('text', 'first'),
    [
      ('é'.encode() + b'caf\xe9 \xff', '0xe9 at offset 5'),
      ('é \ud83d \udc80', 'U+D83D at character 2'),
    ],
  )
  def test_the_first_invalid_place_is_named(self, text, first):
    error = raised.user_error(decode, text, 'fail')
    assert first in error.problem and '1 more' in error.problem


@pytest.mark.parametrize('spec', ['builtin:python-reference', 'text:a.txt'])
def test_text_alone_has_no_classes(spec):
  assert raised.user_error(documents.labels, spec, 'label').key == 'data.label_field'
