"""An index finds what is nearest, belongs to its model and corpus, and is whole or not there."""

import dataclasses
import json
import os
import time
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from gpt_jax.data import sources
from gpt_jax.downstream import search
from tests import raised
from tests.generation import tiny

POOLINGS = ['mean', 'last', 'centered', 'half_whitened', 'whitened']
TEXTS = [
  f'{a}{b} {c}'.replace(' ', '.') * n
  for n, (a, b, c) in enumerate(
    zip('badcafegolifhe', 'mnopqrstuvwxyz', 'hijklmnabcdefg', strict=True), 1
  )
]


@pytest.fixture
def corpus(tmp_path):
  """A function that writes texts, a line each, and opens them as a source."""

  def write(texts=TEXTS, name='corpus.jsonl'):
    lines = [json.dumps({'text': text}) for text in texts]
    (tmp_path / name).write_text('\n'.join(lines))
    return sources.open_source(f'jsonl:{tmp_path / name}', text_field='text')

  return write


def _build(path, corpus, *, pooling='mean', model=None, progress=None):
  model = model or tiny.model()
  made_of = search.identity(model, corpus, pooling=pooling)
  report = progress or mock.Mock()
  return search.build(path, model, corpus, made_of, invalid_utf8='fail', progress=report)


@pytest.mark.parametrize('pooling', POOLINGS)
def test_each_text_finds_itself_first(corpus, tmp_path, monkeypatch, pooling):
  monkeypatch.setattr(search, '_AT_ONCE', 4)
  model, source = tiny.model(n_embd=8), corpus(['', *TEXTS, ' \n'])
  index = _build(tmp_path / 'new' / 'index', source, pooling=pooling, model=model)
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['index']
  kept = search.open_index(
    tmp_path / 'new' / 'index', search.identity(model, source, pooling=pooling)
  )
  for opened in (index, kept):
    found = opened.search(model, TEXTS, top=3)
    for text, hits in zip(TEXTS, found, strict=True):
      assert hits[0].snippet == text[:200] and hits[0].score == pytest.approx(1, abs=1e-3)
      assert hits[0].place.startswith(str(tmp_path / 'corpus.jsonl'))
      assert len(hits) == 3 and sorted(hits, reverse=True) == hits
  (everything,) = index.search(model, TEXTS[:1], top=99)
  assert {hit.snippet for hit in everything} == {text[:200] for text in TEXTS}


def test_scores_are_cosines_of_pooled_hidden_states(corpus, tmp_path):
  model, index = tiny.model(), _build(tmp_path / 'index', corpus())
  vectors_ND, (query_D,) = model.embed(TEXTS), model.embed('hello')
  lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(query_D)
  wanted = dict(zip(TEXTS, vectors_ND @ query_D / lengths_N, strict=True))
  (hits,) = index.search(model, ['hello'], top=99)
  found = {hit.snippet: hit.score for hit in hits}
  assert found == pytest.approx({text[:200]: score for text, score in wanted.items()}, abs=1e-5)


@pytest.mark.parametrize(
  ('pooling', 'power'), [('centered', 1), ('half_whitened', 0.5), ('whitened', 0)]
)
def test_whitening_takes_the_mean_and_a_power_of_the_variances(corpus, tmp_path, pooling, power):
  model = tiny.model(n_embd=8)
  index, vectors_ND = (
    _build(tmp_path / 'i', corpus(), pooling=pooling, model=model),
    model.embed(TEXTS),
  )
  vectors_NK = vectors_ND @ index.transform[:-1] + index.transform[-1]
  np.testing.assert_allclose(vectors_NK.mean(0), 0, atol=1e-3)
  found_KK, before_DD = (np.cov(x.T, bias=True) for x in (vectors_NK, vectors_ND))
  wanted_D = np.linalg.eigvalsh(before_DD)[-len(found_KK) :] ** power
  np.testing.assert_allclose(found_KK, np.diag(wanted_D), atol=1e-2)


def test_a_single_document_can_be_found_in_any_way(corpus, tmp_path):
  for pooling in POOLINGS:
    index = _build(tmp_path / pooling, corpus(['bad']), pooling=pooling)
    ((hit,),) = index.search(tiny.model(), ['a'], top=5)
    assert hit.snippet == 'bad' and np.isfinite(hit.score)


def test_a_snippet_is_one_line_and_keeps_every_character(corpus, tmp_path):
  model = tiny.model(letters=tiny.LETTERS + ' \tü<>/')
  index = _build(tmp_path / 'index', corpus(['bad\n\tü <br /><br />cab' + 'ü' * 300]), model=model)
  ((hit,),) = index.search(model, ['bad'], top=1)
  assert hit.snippet.startswith('bad ü cab') and len(hit.snippet) == 200


def test_an_index_is_only_opened_for_what_it_was_made_of(corpus, tmp_path):
  model, source = tiny.model(), corpus()
  made_of = search.identity(model, source, pooling='mean')
  _build(tmp_path / 'index', source)
  assert (
    search.identity(dataclasses.replace(model), corpus(), pooling='mean')['model']
    == made_of['model']
  )
  nudged = jax.tree.map(lambda x: x, model.params)
  nudged['ln_f']['bias'] = nudged['ln_f']['bias'].at[0].add(1)
  tokenizer: Any = tiny.model(letters=tiny.LETTERS[::-1]).tokenizer
  part = dataclasses.replace(source.parts[0], split='test')
  others = {
    'model': [
      (dataclasses.replace(model, params=nudged), source, 'mean'),
      (dataclasses.replace(model, tokenizer=tokenizer), source, 'mean'),
      (tiny.model(block_size=12), source, 'mean'),
    ],
    'corpus': [
      (model, corpus([*TEXTS, 'more']), 'mean'),
      (model, dataclasses.replace(source, parts=(part,)), 'mean'),
    ],
    'pooling': [(model, source, 'centered')],
  }
  for key, changed in others.items():
    for of_model, of_source, pooling in changed:
      wanted = search.identity(of_model, of_source, pooling=pooling)
      assert {k for k in wanted if wanted[k] != made_of[k]} == {key}
      error = raised.user_error(search.open_index, tmp_path / 'index', wanted)
      assert error.key == 'index' and f'another {key}' in error.problem


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_what_ends_a_build_leaves_nothing_behind(corpus, tmp_path, error):
  source, report = corpus(), mock.Mock(side_effect=[None, error])
  with (
    mock.patch.object(search, '_AT_ONCE', 5),
    pytest.raises((KeyboardInterrupt, search.errors.UserError)),
  ):
    _build(tmp_path / 'new' / 'index', source, progress=report)
  assert report.call_count == 2 and list((tmp_path / 'new').iterdir()) == []


def test_progress_grows_to_the_size_of_the_corpus(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(search, '_AT_ONCE', 5)
  report = mock.Mock()
  _build(tmp_path / 'index', corpus(), progress=report)
  phases, done, totals = zip(*(call.args for call in report.call_args_list), strict=True)
  assert len(set(phases)) == len(set(totals)) == 1 and len(set(done)) > 2
  assert list(done) == sorted(done) and totals[0] / 2 < done[-1] <= totals[0]


def test_a_long_build_does_not_look_stale(corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(search, '_AT_ONCE', 5)
  ages: list[float] = []

  def report(*_: Any) -> None:
    (folder,) = (tmp_path / 'new').iterdir()
    ages.append(time.time() - folder.stat().st_mtime)
    os.utime(folder, (0, 0))

  _build(tmp_path / 'new' / 'index', corpus(), progress=report)
  assert len(ages) >= 3 and min(ages) < 60
  assert [age < 60 for age in ages].count(True) == 3  # once for each batch


@pytest.mark.parametrize('name', ['vectors', 'transform', 'documents', 'index'])
@pytest.mark.parametrize('missing', [False, True])
def test_a_damaged_index_is_named(corpus, tmp_path, name, missing):
  source = corpus()
  _build(tmp_path / 'index', source)
  path = tmp_path / 'index' / (f'{name}.json' if name == 'index' else f'{name}.npy')
  path.write_bytes(path.read_bytes()[:-9])
  if missing:
    path.unlink()
  made_of = search.identity(tiny.model(), source, pooling='mean')
  assert (
    str(tmp_path / 'index') in raised.user_error(search.open_index, tmp_path / 'index', made_of).key
  )


def test_texts_that_cannot_be_read_are_named_by_their_place(corpus, tmp_path):
  error = raised.user_error(_build, tmp_path / 'index', corpus(['bad', 'b?d', 'good', 'ÄÖ']))
  assert [each.key for each in error.all] == [
    f'{tmp_path}/corpus.jsonl at byte {at}' for at in (16, 49)
  ]
  source = corpus(['bad'])
  (tmp_path / 'corpus.jsonl').write_bytes(b'{"text": "\xff"}')
  error = raised.user_error(_build, tmp_path / 'index', source)
  assert error.key.startswith(str(tmp_path / 'corpus.jsonl'))
  assert raised.user_error(_build, tmp_path / 'index', corpus(['', ' '])).key == 'data.source'
  assert raised.user_error(_build, tmp_path / 'index', source, model=tiny.bare()).key == 'model'
  assert not (tmp_path / 'index').exists()
