"""Masked tokens are guessed from both sides: which ones, at what loss, by a run and what uses it.

Shapes in names: A accumulation, B batch, L length, V vocabulary.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from gpt_jax import cli, inspect, models
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.downstream import classify
from gpt_jax.generation import language_model
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import held_out, objectives, program
from tests import raised
from tests.models import tiny
from tests.training import runs

IGNORED, MASK = batch_lib.IGNORED, tiny.VOCAB - 1
CONFIG = tiny.make_config(kind='encoder', mask_id=MASK)


def _rows(B=4, L=8):
  """Random rows, the last ones with fewer and fewer tokens."""
  inputs_BL = tiny.make_tokens(B, L) % MASK
  targets_BL = np.where(np.arange(L) < L - np.arange(B)[:, None] % L, inputs_BL, IGNORED)
  return batch_lib.Batch(inputs_BL, targets_BL, (targets_BL != IGNORED).astype(np.int32))


def test_a_fixed_share_of_the_tokens_of_each_row_is_to_be_guessed():
  rows = _rows(50, 60)
  found = objectives.prepare(CONFIG, rows, jax.random.key(1))
  chosen_BL = np.asarray(found.targets) != IGNORED
  tokens_B = (rows.targets != IGNORED).sum(1)
  np.testing.assert_array_equal(chosen_BL.sum(1), np.ceil(tokens_B * 3 / 20).astype(int))
  assert not (chosen_BL & (rows.targets == IGNORED)).any()
  np.testing.assert_array_equal(found.targets[chosen_BL], rows.inputs[chosen_BL])
  np.testing.assert_array_equal(found.inputs[~chosen_BL], rows.inputs[~chosen_BL])
  assert chosen_BL.any(0)[:10].all(), 'any position may be'


def test_of_them_80_percent_are_masked_10_percent_are_random_and_10_percent_stay():
  rows = _rows(2000, 100)
  found = objectives.prepare(CONFIG, rows, jax.random.key(1))
  chosen_BL = np.asarray(found.targets) != IGNORED
  now, was = np.asarray(found.inputs)[chosen_BL], rows.inputs[chosen_BL]
  V, five = tiny.VOCAB, 5 * 0.4 / len(now) ** 0.5  # standard deviations, of at most 0.4 each
  # A random token may be the mask, or the one that was there.
  assert (now == MASK).mean() == pytest.approx(0.8 + 0.1 / V, abs=five)
  assert (now == was).mean() == pytest.approx(0.1 + 0.1 / V, abs=five)
  others = np.bincount(now[(now != MASK) & (now != was)], minlength=V)[:MASK]
  assert others.min() > 0.5 * others.mean()


def test_masks_are_a_function_of_the_key_however_rows_are_grouped():
  rows = _rows()
  one, same, other = (
    objectives.prepare(CONFIG, batch, jax.random.key(key))
    for key, batch in (
      (1, rows),
      (1, batch_lib.Batch(*(x.reshape(2, 2, 8) for x in rows[:3]))),
      (2, rows),
    )
  )
  np.testing.assert_array_equal(one.inputs, same.inputs.reshape(4, 8))
  assert (one.targets != other.targets).any()
  plain = dataclasses.replace(CONFIG, mask_id=-1)
  assert objectives.prepare(plain, rows, jax.random.key(1)) is rows


def test_loss_and_accuracy_are_those_of_the_masked_tokens_alone():
  model, params, rows = models.make(CONFIG), tiny.make_params(kind='encoder'), _rows()
  part = objectives.prepare(CONFIG, rows, jax.random.key(0))  # an evaluation's own key
  logits_BLV = tiny.apply(model, params, part.inputs, segments_BL=part.segments)[0]
  places = np.nonzero(np.asarray(part.targets) != IGNORED)
  targets_N, logits_NV = (
    np.asarray(part.targets)[places],
    np.asarray(logits_BLV, np.float64)[places],
  )
  losses_N = np.log(np.exp(logits_NV).sum(-1)) - logits_NV[np.arange(len(targets_N)), targets_N]
  sums = jax.jit(lambda params: objectives.evaluate(model, params, rows))(params)
  assert float(sums['loss']) == pytest.approx(losses_N.sum(), rel=1e-5)
  assert int(sums['targets']) == len(targets_N)
  # Those that stay or become another token are none to guess.
  masked_N = np.asarray(part.inputs)[places] == MASK
  assert 0 < masked_N.sum() < len(masked_N)
  assert int(sums['right']) == (logits_NV.argmax(-1) == targets_N)[masked_N].sum()
  counts_V = np.bincount(targets_N[masked_N], minlength=tiny.VOCAB)
  np.testing.assert_array_equal(sums['counts'], counts_V)
  loss = jax.jit(functools.partial(objectives.loss, model))(params, part, jax.random.key(5))
  assert float(loss) == pytest.approx(losses_N.sum(), rel=1e-5)


def test_measures_have_the_accuracy_of_the_most_frequent_token_too():
  sums = {'loss': 20.0, 'targets': 10, 'right': 4, 'counts': np.array([1, 3, 0, 6])}
  found = objectives.measures(sums)
  assert found == pytest.approx(
    {'loss': 2, 'perplexity': np.exp(2), 'accuracy': 0.4, 'unigram': 0.6}
  )


# A run and what uses it.


def _config(folder, **changes):
  """Every letter but the first is decided by its neighbours; the class by the first."""
  path = folder / 'lines.jsonl'
  texts = [('abcdefgh', 'up'), ('hgfedcba', 'down')]
  lines = [json.dumps({'text': text * 2, 'is': label}) for text, label in texts] * 60
  path.write_text('\n'.join(lines))
  values = {
    'task': 'masked',
    'data__source': f'jsonl:{path}',
    'data__tokenizer': 'char',
    'data__special_tokens': 'eos mask',
    'data__label_field': 'is',
    'data__chunks': 'packed',
    'data__val_fraction': 0.3,
    'data__row_length': 16,
    'model__kind': 'encoder',
    'model__dropout': 0.0,
    'train__steps': 400,
    'train__eval_every': 200,
    'train__checkpoint_every': 400,
    'optimizer__schedule': 'cosine',
  }
  return runs.change(runs.make_config(folder), **values | changes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """An encoder that guesses masked tokens, `run`, and a classifier that starts from it."""
  folder = tmp_path_factory.mktemp('masked')
  runs.run(_config(folder), folder / 'run')
  start = {'task': 'classify', 'init_from': str(folder / 'run'), 'train__steps': 30}
  runs.run(_config(folder, **start, train__eval_every=15), folder / 'classifier')
  return folder


def test_it_learns_to_guess_from_both_sides(folder):
  lines = [line for line in runs.lines(folder / 'run') if 'val/loss' in line]
  assert lines[-1]['val/accuracy'] > 0.8 > 2 * lines[-1]['val/unigram'] > 0
  assert lines[-1]['val/unigram'] == lines[0]['val/unigram'], 'the same masks each time'
  measured = held_out.measure(_saved(folder / 'run'), 'validation', progress=lambda *_: None)
  assert measured.measures['accuracy'] > 0.8
  model = language_model.load(folder / 'run')
  assert model.tokenizer is not None and model.config.mask_id == model.tokenizer.mask_id


def _saved(path):
  from gpt_jax.weights import saved_model

  return saved_model.open_model(path)


def test_it_fills_in_what_is_masked(folder, capsys):
  def fill(*args):
    values = inspect.define_flags()
    cli.parse(values, ['inspect', *args], takes_config=False)
    inspect.main(values)
    return capsys.readouterr().out

  out = fill(f'--model={folder / "run"}', '--fill=hab[MASK]de[MASK]g')
  model = language_model.load(folder / 'run')
  assert model.tokenizer is not None
  ids = [
    model.tokenizer.token_id(token) for token in ('h', 'a', 'b', 'mask', 'd', 'e', 'mask', 'g')
  ]
  likeliest_L = np.asarray(model.logits([ids])[0].argmax(-1))
  for place, line in zip((3, 6), out.splitlines()[-2:], strict=True):
    assert line.split()[:2] == ['[MASK]', model.tokenizer.decode([likeliest_L[place]])]
  for key, args in (
    ('model', ['--fill=a[MASK]']),
    ('picture', ['--fill=a[MASK]', '--picture=next', '--model=x', '--prompt=a']),
    ('fill', ['--fill=abc', f'--model={folder / "run"}']),
    ('fill', [f'--fill={"[MASK]" * 9}', f'--model={folder / "run"}']),
    ('model', ['--fill=a[MASK]', f'--model={folder / "classifier"}']),
  ):
    assert raised.user_error(fill, *args).key == key, args


def test_a_classifier_starts_from_it(folder):
  lines = [line for line in runs.lines(folder / 'classifier') if 'val/loss' in line]
  assert lines[-1]['val/accuracy'] > 0.9
  model = language_model.load(folder / 'classifier')
  assert model.config.kind == 'encoder' and model.config.mask_id == -1
  found = classify.classify(model, ['abcdefgh' * 2, 'hgfedcba' * 2])
  assert [each.label for each in found] == ['up', 'down']


def test_a_run_that_is_stopped_goes_on_with_the_masks_it_would_have_had(folder, tmp_path):
  short = {'train__steps': 4, 'train__eval_every': 2, 'train__checkpoint_every': 2}
  runs.run(_config(folder, **short), tmp_path / 'whole')
  runs.run(_config(folder, **short | {'train__steps': 2}), tmp_path / 'parts')
  runs.run(_config(folder, **short), tmp_path / 'parts')
  runs.assert_same(tmp_path / 'whole', tmp_path / 'parts')


def test_a_tokenizer_without_a_mask_is_refused(folder):
  config = _config(folder)
  byte = tokenizers.build(dataclasses.replace(config.data, special_tokens='', tokenizer='byte'), {})
  mesh = mesh_lib.make_mesh(config)
  assert raised.user_error(program.resolve, config, byte, (), mesh).key == 'data.tokenizer'
