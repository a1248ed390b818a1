"""A spec gives its parts in order, their text is checked, and a mixture is taken apart."""

import json
import os
import pickle

import hypothesis
import hypothesis.strategies as st
import pytest

from gpt_jax import errors
from gpt_jax.data import sources


def fails(use, *words):
  """Asserts that `use()` fails with one paragraph that has all `words`."""
  with pytest.raises(errors.UserError) as e:
    use()
  message = str(e.value)
  assert '\n' not in message
  for word in words:
    assert word in message


class TestBuiltin:
  def test_is_prose_in_a_fixed_order(self):
    source = sources.open_source('builtin:python-reference', text_field='text')
    (part,) = pickle.loads(pickle.dumps(source.parts))
    pieces = list(part.read())
    assert len(pieces) > 50 and all(piece.last for piece in pieces)
    assert part.size == sum(len(piece.text) for piece in pieces) > 300_000
    assert pieces == list(source.parts[0].read())
    assert pieces[0].text.startswith(b'The "assert" statement') and 'assert' in pieces[0].place
    places = [piece.place for piece in pieces]
    assert places == sorted(set(places))

  def test_the_fingerprint_follows_the_text(self, monkeypatch):
    def fingerprint():
      source = sources.open_source('builtin:python-reference', text_field='text')
      return json.dumps(source.fingerprint)

    old = fingerprint()
    assert fingerprint() == old
    monkeypatch.setitem(sources.pydoc_data.topics.topics, 'assert', 'something else')
    assert fingerprint() != old

  def test_another_name_is_refused(self):
    fails(
      lambda: sources.open_source('builtin:python', text_field='text'), 'builtin:python-reference'
    )


class TestUnknown:
  @pytest.mark.parametrize(
    ('spec', 'hint'),
    [
      ('txt:a.txt', 'did you mean text:a.txt?'),
      ('json:a.jsonl', 'did you mean jsonl:a.jsonl?'),
      ('paquet:a', 'did you mean parquet:a?'),
      ('TFDS:pg19', 'did you mean tfds:pg19?'),
      ('token:a', 'did you mean tokens:a?'),
      ('python-reference', 'did you mean builtin:python-reference?'),
      ('shakespeare', 'tfds:NAME'),
      ('', 'parquet:FOLDER'),
      ('text:', 'jsonl:GLOB'),
      ('jsonl:', 'tokens:PATH'),
    ],
  )
  def test_the_nearest_source_is_named(self, spec, hint):
    fails(lambda: sources.open_source(spec, text_field='text'), hint, 'text:GLOB')

  @pytest.mark.parametrize(
    ('name', 'scheme'),
    [
      ('a.txt', 'text'),
      ('a.md.gz', 'text'),
      ('a.jsonl', 'jsonl'),
      ('a.jsonl.zst', 'jsonl'),
      ('a.parquet', 'parquet'),
      ('train.bin', 'tokens'),
    ],
  )
  def test_a_bare_path_is_understood(self, name, scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('text')
    for spec in (name, f'*{os.path.splitext(name)[1]}'):
      fails(
        lambda spec=spec: sources.open_source(spec, text_field='text'),
        f'did you mean {scheme}:{spec}?',
      )


class TestMixture:
  @pytest.mark.parametrize(
    ('source', 'pairs'),
    [
      ('text:a', [(None, 'text:a')]),
      ('0.5*text:a', [(0.5, 'text:a')]),
      ('0.7*text:a + 0.3*tfds:b', [(0.7, 'text:a'), (0.3, 'tfds:b')]),
      ('2 * text:a + 1e-1 * tokens:b', [(2, 'text:a'), (0.1, 'tokens:b')]),
      (
        'text:a + jsonl:b + builtin:c + parquet:d',
        [(None, spec) for spec in ('text:a', 'jsonl:b', 'builtin:c', 'parquet:d')],
      ),
      ('text:C + D.txt', [(None, 'text:C + D.txt')]),
      ('text:a + b:c', [(None, 'text:a + b:c')]),
      ('3*text:*.txt + 1*text:x*y', [(3, 'text:*.txt'), (1, 'text:x*y')]),
      ('text:a+text:b', [(None, 'text:a+text:b')]),
      ('nonsense', [(None, 'nonsense')]),
      ('', [(None, '')]),
    ],
  )
  def test_is_taken_apart(self, source, pairs):
    assert sources.parse_mixture(source) == pairs

  @pytest.mark.parametrize(
    ('source', 'words'),
    [
      ('0*text:a + 1*text:b', ['0*text:a', 'positive']),
      ('-1*text:a', ['-1*text:a', 'positive']),
      ('nan*text:a', ['positive']),
      ('1*text:a + inf*text:b', ['inf*text:b', 'positive']),
      ('half*text:a', ['weight', 'half']),
      ('1*text:a + text:b', ['text:b has no weight', '0.5*text:b']),
      ('text:a + 1*text:b', ['text:a has no weight']),
      ('text:a + text:b + text:a', ['text:a', 'twice']),
      ('0.3*text:a + 0.7*text:a', ['text:a', 'twice']),
    ],
  )
  def test_what_is_wrong_is_named(self, source, words):
    fails(lambda: sources.parse_mixture(source), '--config.data.source', *words)

  @hypothesis.given(
    st.lists(
      st.tuples(
        st.floats(min_value=1e-9, max_value=1e9),
        st.builds(
          '{}:{}'.format,
          st.sampled_from(['text', 'jsonl', 'parquet', 'tfds', 'tokens']),
          st.text('ab/.*-_ 0', min_size=1),
        ),
      ),
      min_size=1,
      unique_by=lambda pair: pair[1],
    )
  )
  def test_is_the_inverse_of_writing_it(self, pairs):
    assert sources.parse_mixture(' + '.join(f'{w!r}*{spec}' for w, spec in pairs)) == pairs
    specs = [spec for _, spec in pairs]
    assert sources.parse_mixture(' + '.join(specs)) == [(None, spec) for spec in specs]


def decode(text, policy='replace'):
  return sources.decode(sources.Piece('x.txt', text), invalid_utf8=policy)


class TestDecode:
  @hypothesis.given(st.text(), st.sampled_from(['fail', 'replace']))
  def test_good_text_is_kept(self, text, policy):
    assert decode(text.encode(), policy) == decode(text, policy) == (text, 0)

  @hypothesis.given(st.binary())
  def test_bytes_are_replaced_as_unicode_says(self, data):
    text, count = decode(data)
    assert text == data.decode('utf-8', 'replace')
    if count:
      fails(lambda: decode(data, 'fail'), 'x.txt')
    else:
      assert text.encode() == data

  @hypothesis.given(st.lists(st.one_of(st.just(None), st.text()), max_size=6))
  def test_bad_places_are_counted(self, parts):
    bad = parts.count(None)
    data = b' '.join(b'\xe9' if part is None else part.encode() for part in parts)
    lone = ' '.join('\udce9' if part is None else part for part in parts)
    whole = ' '.join('\ufffd' if part is None else part for part in parts)
    assert decode(data) == decode(lone) == (whole, bad)

  def test_a_replacement_that_was_there_is_not_bad(self):
    assert decode('\ufffd '.encode() + b'\xff') == ('\ufffd \ufffd', 1)

  def test_what_is_wrong_is_named_with_its_place(self):
    fix = '--config.data.invalid_utf8=replace'
    fails(lambda: decode('é'.encode() + b'caf\xe9 \xff', 'fail'), 'x.txt', 'byte 0xe9', 'offset 5')
    fails(lambda: decode(b'\xff \xff \xff', 'fail'), 'offset 0', '2 more', fix)
    fails(
      lambda: decode('é \ud83d \udc80', 'fail'), 'x.txt', 'U+D83D', 'character 2', '1 more', fix
    )
    with pytest.raises(errors.UserError) as e:
      decode(b'\xff', 'fail')
    assert 'more' not in str(e.value)
