"""The command prints what is nearest, keeps its index, and names what is invalid."""

import json
from unittest import mock

import pytest

from gpt_jax import cli, search
from gpt_jax.downstream import search as search_lib
from tests import raised, random_params
from tests.weights import saved

TEXTS = ['a sad story', 'a happy one', 'of bytes']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """The workdir of a run; the model reads 8 bytes."""
  path = tmp_path_factory.mktemp('runs') / 'run'
  saved.save_run(path, saved.MODEL, {3: random_params.make(saved.MODEL)})
  return path


@pytest.fixture
def command(model, tmp_path, monkeypatch, capsys):
  """A function that runs the command beside some texts, and returns what it prints."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  for split, texts in (('train', TEXTS), ('test', ['of bits'])):
    lines = [json.dumps({'text': text, 'number': 1}) for text in texts]
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(lines))
  (tmp_path / 'queries.txt').write_text('a happy one\nof bytes\n')
  (tmp_path / 'gap.txt').write_text('one\n\ntwo\n')
  (tmp_path / 'latin.txt').write_bytes(b'some \xe9')

  def run(*args):
    values = search.define_flags()
    args = ('search', f'--model={model}', '--corpus=jsonl:train.jsonl', *args)
    cli.parse(values, list(args), takes_config=False)
    search.main(values)
    return capsys.readouterr()

  return run


def _indices(tmp_path):
  return sorted(path.name for path in (tmp_path / 'cache' / 'gpt_jax' / 'search').iterdir())


def test_the_nearest_documents_of_each_query(command):
  out, messages = command('--query=a sad story', '--queries=queries.txt', '--top=2')
  lines = out.splitlines()
  assert [line for line in lines if line[0] != ' '] == ['a sad story', 'a happy one', 'of bytes']
  for query in ('a sad story', 'a happy one', 'of bytes'):
    first, snippet, second = lines[lines.index(query) + 1 :][:3]
    assert first.split()[:2] == ['1', '1.000'] and 'train.jsonl at byte' in first
    assert snippet.strip() == query and second.split()[0] == '2'
  assert 'made the index' in messages and 'searched 3 documents' in messages


def test_json_has_a_line_for_each_query(command):
  args = ('--query=a sad story', '--query=of bytes', '--top=2')
  out, messages = command(*args, '--json')
  found = [json.loads(line) for line in out.splitlines()]
  assert [each['query'] for each in found] == ['a sad story', 'of bytes']
  assert [each['hits'][0]['snippet'] for each in found] == ['a sad story', 'of bytes']
  assert all(len(each['hits']) == 2 for each in found) and 'searched 3 documents' in messages
  assert 'byte' not in messages  # the place of a document
  readable = command(*args)[0]
  for hit in (hit for each in found for hit in each['hits']):
    assert f'{hit["score"]:.3f}  {hit["place"]}' in readable


def test_an_index_is_made_once_for_each_corpus_and_pooling(command, tmp_path, monkeypatch):
  build = mock.Mock(wraps=search_lib.build)
  monkeypatch.setattr(search_lib, 'build', build)
  first, _ = command('--query=story')
  again, messages = command('--query=story')
  assert build.call_count == 1 and again == first and 'made' not in messages
  command('--query=story', '--pooling=last')
  command('--query=story', '--corpus=jsonl:test.jsonl')
  (tmp_path / 'train.jsonl').write_text('{"text": "another story"}')
  assert 'another story' in command('--query=story')[0]
  assert build.call_count == len(_indices(tmp_path)) == 4
  command('--query=story', '--index=mine')
  command('--query=other', '--index=mine')
  assert build.call_count == 5 and (tmp_path / 'mine' / 'index.json').exists()
  for other in ('--pooling=last', '--corpus=jsonl:test.jsonl'):
    assert raised.user_error(command, '--query=story', '--index=mine', other).key == 'index'


def test_a_split_of_the_corpus(command, tmp_path):
  pq = pytest.importorskip('pyarrow.parquet')
  import pyarrow as pa

  for split in ('train', 'test'):
    pq.write_table(pa.table({'words': [f'of {split}']}), f'{split}.parquet')
  corpus = ('--query=x', '--corpus=parquet:.', '--text_field=words')
  assert command(*corpus)[0].count('parquet row') == 2
  out, _ = command(*corpus, '--split=test')
  assert 'of test' in out and 'of train' not in out
  assert raised.user_error(command, *corpus, '--split=dev').key == 'split'


@pytest.mark.parametrize(
  ('args', 'flag'),
  [
    ([], '--query'),
    (['--query=x', '--model='], '--model'),
    (['--query=x', '--corpus='], '--corpus'),
    (['--query=x', '--corpus=train.jsonl'], '--corpus'),
    (['--query=x', '--corpus=jsonl:none'], '--corpus'),
    (['--query=x', '--corpus=tokens:train.jsonl'], '--corpus'),
    (['--query= ', '--model=none'], '--query'),
    (['--query=\udce9', '--model=none'], '--query'),
    (['--queries=gap.txt', '--model=none'], 'gap.txt:2'),
    (['--queries=latin.txt', '--model=none'], 'latin.txt:1'),
    (['--queries=none.txt', '--model=none'], '--queries'),
    (['--query=x', '--top=0'], '--top'),
    (['--query=x', '--pooling=meen'], 'mean'),
    (['--query=x', '--text_field=words'], '--text_field'),
    (['--query=x', '--text_field=number'], '--text_field'),
    (['--query=x', '--invalid_utf8=drop'], '--invalid_utf8'),
    (['--query=x', '--corpus=text:latin.txt'], '--invalid_utf8'),
    (['--query=x', '--index=train.jsonl'], 'train.jsonl'),
    (['--query=x', '--index=.'], 'index.json'),
    (['--query=x', '--index=train.jsonl/x'], '--index'),
    (['--query=x', '--split=test'], '--split'),
  ],
)
def test_what_is_invalid_is_named(command, args, flag):
  error = raised.user_error(command, *args)
  message = cli.render(error, search.define_flags(), aliases=search.ALIASES)
  assert flag in message and 'prompts' not in message and 'data.' not in message
