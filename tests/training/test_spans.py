"""A model learns to write the spans that a text lacks: what is measured of it, and what uses it.

Shapes in names: B batch, L length, V vocabulary.
"""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from gpt_jax import cli, evaluate, models, sample
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.generation import language_model, prompts
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import held_out, objectives, program
from gpt_jax.weights import saved_model
from tests import raised
from tests.models import tiny
from tests.training import runs

IGNORED, MASK = batch_lib.IGNORED, tiny.VOCAB - 1


def test_right_are_the_tokens_of_spans_without_masks_and_eos():
  config = tiny.make_config(kind='encoder_decoder', mask_id=MASK)
  model, params = models.make(config), tiny.make_params(kind='encoder_decoder')
  sources_BL, inputs_BL = tiny.make_tokens(3, 8) % MASK, tiny.make_tokens(3, 6)
  logits_BLV = tiny.apply(model, params, inputs_BL, sources_BM=sources_BL)[0]
  # The first row is all right, of the second only one token counts, the last is a full one.
  targets_BL = np.asarray(logits_BLV.argmax(-1)).astype(np.int32) % MASK
  targets_BL[0, :4] = [MASK, targets_BL[0, 1], targets_BL[0, 2], 3]
  targets_BL[0, 4:] = targets_BL[1, 3:] = IGNORED
  targets_BL[1, :3] = [MASK, (targets_BL[1, 1] + 1) % MASK, 3]
  targets_BL[2, 0] = targets_BL[2, 3] = MASK
  rows = batch_lib.Batch(inputs_BL, targets_BL, None, sources_BL)
  assert objectives.prepare(config, rows, jax.random.key(0)) is rows
  sums = jax.jit(functools.partial(objectives.evaluate, model))(params, rows)
  counted = [targets_BL[0, 1:3], targets_BL[1, 1:2], targets_BL[2, 1:3], targets_BL[2, 4:5]]
  assert int(sums['right']) == 2 + 0 + 2 + 1 and int(sums['targets']) == 4 + 3 + 6
  counts_V = np.bincount(np.concatenate(counted), minlength=tiny.VOCAB)
  np.testing.assert_array_equal(np.asarray(sums['counts'])[: tiny.VOCAB], counts_V)
  loss = jax.jit(functools.partial(objectives.loss, model))(params, rows, jax.random.key(5))
  assert float(loss) == pytest.approx(float(sums['loss']), rel=1e-5)


# A run and what uses it.


def _config(folder, **changes):
  """A text of one word over and over."""
  values = {
    'task': 'spans',
    'data__source': f'text:{folder / "letters.txt"}',
    'data__special_tokens': 'mask',
    'model__kind': 'encoder_decoder',
    'model__block_size': 12,
    'model__dropout': 0.0,
    'train__steps': 300,
    'train__eval_every': 150,
    'train__checkpoint_every': 300,
    'optimizer__learning_rate': 1e-2,
    'optimizer__schedule': 'cosine',
  }
  (folder / 'letters.txt').write_text('abcdefgh' * 200)
  return runs.change(runs.make_config(folder), **values | changes)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('spans')
  runs.run(_config(folder), folder / 'run')
  return folder


def test_it_learns_to_write_what_is_left_out(folder):
  lines = [line for line in runs.lines(folder / 'run') if 'val/loss' in line]
  assert lines[-1]['val/accuracy'] > 0.8 > 2 * lines[-1]['val/unigram'] > 0
  saved = saved_model.open_model(folder / 'run')
  measured = held_out.measure(saved, 'validation', progress=lambda *_: None)
  assert measured.measures['accuracy'] > 0.8 and 'exact_match' not in measured.measures


def test_a_prompt_has_masks_and_the_text_shows_which_is_which(folder, capsys):
  def run(*args):
    values = sample.define_flags()
    cli.parse(values, ['sample', f'--model={folder / "run"}', *args], takes_config=False)
    sample.main(values)
    return capsys.readouterr().out

  greedy = ['--temperature=0', '--max_new_tokens=8']
  model = language_model.load(folder / 'run')
  tokenizer = model.tokenizer
  assert tokenizer is not None and tokenizer.mask_id == model.config.mask_id
  prompt = 'ab[MASK]efghab'
  assert model.encode(prompt) == [*b'ab', tokenizer.mask_id, *b'efghab']
  assert model.encode('[MASK]' * 2) == [tokenizer.mask_id] * 2
  assert run(f'--prompt={prompt}', *greedy) == f'{prompt}\n[MASK]cd\n'
  (made,) = model.generate(prompt, temperature=0.0, max_new_tokens=8)
  assert (made.tokens, made.text, made.ended) == ([tokenizer.mask_id, *b'cd'], '[MASK]cd', 'eos')
  record = json.loads(run(f'--prompt={prompt}', *greedy, '--json'))
  assert record['text'] == '[MASK]cd'
  ids = [tokenizer.mask_id, *b'ab', tokenizer.mask_id, tokenizer.mask_id, *b'c']
  text = prompts.decode_masked(tokenizer, ids, mask_id=tokenizer.mask_id)
  assert text == '[MASK]ab[MASK][MASK]c'
  assert prompts.decode_masked(tokenizer, ids, mask_id=-1) == 'abc'


def test_a_translation_starts_from_it_and_is_measured_by_its_responses(folder, capsys):
  lines = [{'instruction': c * n, 'output': 2 * c} for c in 'abcdefgh' for n in range(1, 9)]
  (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  changes = {
    'task': 'translate',
    'init_from': str(folder / 'run'),
    'data__source': f'jsonl:{folder / "pairs.jsonl"}',
    'data__template': '{prompt}',
    'train__steps': 1,
    'optimizer__learning_rate': 1e-9,
    'optimizer__min_learning_rate': 0.0,
  }
  runs.run(_config(folder, **changes), folder / 'translation')
  params = [runs.saved_state(folder / name)['params'] for name in ('run', 'translation')]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), *params)
  model = language_model.load(folder / 'translation')
  assert model.config.mask_id == -1 and model.encode('[MASK]') == [*b'[MASK]']
  capsys.readouterr()
  values = evaluate.define_flags()
  args = [f'--model={folder / "translation"}', f'--data=examples:{folder / "pairs.jsonl"}']
  cli.parse(values, ['evaluate', *args], takes_config=False)
  evaluate.main(values)
  out = capsys.readouterr().out
  assert 'examples              64' in out and 'exact match         0.0%' in out


def test_a_run_that_is_stopped_goes_on_with_the_spans_it_would_have_had(folder, tmp_path):
  short = {'train__steps': 4, 'train__eval_every': 2, 'train__checkpoint_every': 2}
  runs.run(_config(folder, **short), tmp_path / 'whole')
  runs.run(_config(folder, **short | {'train__steps': 2}), tmp_path / 'parts')
  runs.run(_config(folder, **short), tmp_path / 'parts')
  runs.assert_same(tmp_path / 'whole', tmp_path / 'parts')


def test_a_tokenizer_without_a_mask_is_refused(folder):
  config = _config(folder)
  byte = tokenizers.build(dataclasses.replace(config.data, special_tokens=''), {})
  error = raised.user_error(program.resolve, config, byte, (), mesh_lib.make_mesh(config))
  assert error.key == 'data.tokenizer'
