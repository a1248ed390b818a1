"""Classification is a task of the same trainer: it learns, resumes, and starts from any model."""

import json

import jax
import numpy as np
import pytest

from gpt_jax import cli, errors, evaluate, models
from gpt_jax.data import loader
from gpt_jax.training import held_out
from gpt_jax.weights import saved_model
from tests import raised
from tests.training import runs

pytestmark = pytest.mark.usefixtures('quick_runs')


def _config(folder, **changes):
  """Reviews that are good or bad by two of their words."""
  path = folder / 'reviews.jsonl'
  if not path.exists():
    random, lines = np.random.default_rng(0), []
    for i in range(300):
      words = random.choice(['film', 'plot', 'and', 'the', 'actor'], 3 + i % 9).tolist()
      word = ('dull', 'fine')[i % 2]
      words.insert(random.integers(0, 3), word)
      lines.append(json.dumps({'text': ' '.join(words), 'is': ('bad', 'good')[i % 2]}))
    path.write_text('\n'.join(lines))
  values = {
    'task': 'classify',
    'data__source': f'jsonl:{path}',
    'data__tokenizer': 'word',
    'data__label_field': 'is',
    'data__split': 'document',
    'data__test_fraction': 0.2,
    'data__val_fraction': 0.2,
    'data__row_length': 12,
    'model__dropout': 0.0,
  }
  return runs.change(runs.make_config(folder), **values | changes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory, quick_runs):
  """A language model and classifiers that start from it: `run`, `frozen`, `adapted`."""
  folder = tmp_path_factory.mktemp('classify')
  language = {'task': 'next_token', 'data__chunks': 'packed', 'data__label_field': 'is'}
  runs.run(_config(folder, **language), folder / 'language')
  start = {'init_from': str(folder / 'language'), 'train__steps': 12, 'train__eval_every': 4}
  runs.run(_config(folder, **start), folder / 'run')
  runs.run(_config(folder, model__freeze_body=True, **start), folder / 'frozen')
  runs.run(_config(folder, model__lora_rank=2, **start), folder / 'adapted')
  return folder


def _params(path):
  saved = saved_model.open_model(path)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return saved.config, saved.load(models.abstract_params(saved.config, device))


def test_it_learns_and_keeps_the_most_accurate(folder):
  lines = [line for line in runs.lines(folder / 'run') if 'val/loss' in line]
  assert lines[-1]['val/accuracy'] > 0.9 > lines[0]['val/accuracy']
  best = min((line['val/error'], line['val/loss'], line['step']) for line in lines if line['step'])
  assert saved_model.open_model(folder / 'run').step == best[-1]
  for line in lines:
    assert line['val/error'] == pytest.approx(1 - line['val/accuracy'])
    assert 0 <= line['val/f1'] <= 1 and 'val/perplexity' not in line


def test_a_frozen_body_stays_that_of_the_model_it_started_from(folder):
  _, base = _params(folder / 'language')
  config, params = _params(folder / 'frozen')
  assert config.class_names == ('bad', 'good')
  score = params.pop('score')
  assert score['kernel'].shape == (16, 2) and np.abs(score['kernel']).max() > 0.02
  runs.assert_trees_equal(params, base)


def test_adapters_are_merged_and_the_layer_is_new(folder):
  _, base = _params(folder / 'language')
  _, params = _params(folder / 'adapted')
  runs.assert_trees_equal(params['wte'], base['wte'])
  attention = [tree['h_0']['attn']['c_attn']['kernel'] for tree in (params, base)]
  assert not np.array_equal(*attention) and 'score' in params


def _held_out(saved):
  """How many targets there are for validation, and for tests."""
  data = loader.open_data(saved.run.read_config(), check=None)
  counts = []
  for dataset in filter(None, (data.val, data.test)):
    (chunks,) = dataset.chunks
    counts.append(np.count_nonzero(chunks.rows(np.arange(len(chunks))).targets >= 0))
  return counts


def test_the_test_split_is_measured_document_by_document(folder):
  saved = saved_model.open_model(folder / 'run')
  found = held_out.measure(saved, 'test', progress=lambda *_: None)
  assert found.confusion is not None and np.sum(found.confusion) == found.targets
  assert found.targets == _held_out(saved)[1] == pytest.approx(60, abs=25)
  right = np.trace(found.confusion)
  assert (
    found.measures['accuracy'] == pytest.approx(right / found.targets)
    and right > 0.8 * found.targets
  )
  table = dict(found.table())
  assert table['documents'] == str(found.targets) and table['bad'].split() == list(
    map(str, found.confusion[0])
  )


def test_the_command_prints_it(folder, capsys):
  values = evaluate.define_flags()
  args = [f'--model={folder / "run"}', '--data=run:validation', '--json']
  cli.parse(values, ['evaluate', *args], takes_config=False)
  evaluate.main(values)
  out, messages = capsys.readouterr()
  found = json.loads(out)
  step, accuracy = found['step'], found['measures']['accuracy']
  assert found['task'] == 'run' and found['classes'] == ['bad', 'good']
  logged = {line['step']: line for line in runs.lines(folder / 'run') if 'val/error' in line}
  assert logged[step]['val/accuracy'] == pytest.approx(accuracy, abs=0.1)  # of fewer rows
  assert f'step {step}' in messages and f'accuracy        {accuracy:.4f}' in messages


def test_validation_of_a_language_model_is_each_token_once(folder):
  saved = saved_model.open_model(folder / 'language')
  whole, other = (held_out.measure(saved, 'validation', progress=lambda *_: None) for _ in range(2))
  assert whole == other and whole.confusion is None
  assert whole.targets == _held_out(saved)[0]
  assert set(whole.measures) == {'loss', 'perplexity'}
  path = folder / 'language' / 'text.json'
  text = path.read_text()
  path.write_text(text.replace('": "', '": "0'))
  error = raised.user_error(held_out.measure, saved, 'test', progress=lambda *_: None)
  path.write_text(text)
  assert error.key == 'data.source'
  assert raised.user_error(held_out.measure, saved, 'train', progress=None).key == 'data'


def test_a_stopped_run_goes_on_as_if_it_had_not_been(folder, tmp_path):
  config = _config(folder, train__steps=12, train__eval_every=4)
  whole = runs.run(config, tmp_path / 'whole')
  runs.run(runs.change(config, train__steps=6), tmp_path / 'parts')
  runs.run(config, tmp_path / 'parts')
  kept = [
    [
      {k: v for k, v in line.items() if k not in ('time', 'perf/tokens_per_second')}
      for line in runs.lines(path)
      if line['step'] > 6
    ]
    for path in (whole, tmp_path / 'parts')
  ]
  assert kept[0] == kept[1] and kept[0]


def test_the_classes_are_those_of_the_data(folder, tmp_path):
  config = _config(folder, model__classes='good,bad')
  error = raised.user_error(runs.run, config, tmp_path / 'run')
  assert error.key == 'model.classes' and 'bad,good' in error.problem


def test_a_model_of_another_shape_is_refused(folder, tmp_path):
  config = _config(
    folder, init_from=str(folder / 'language'), model__kind='lstm', model__tie_embeddings=False
  )
  with pytest.raises(errors.UserError) as e:
    runs.run(config, tmp_path / 'run')
  assert {error.key for error in e.value.all} == {'model.kind', 'model.tie_embeddings'}
