"""What an encoder reads and what a decoder writes are a text again, once put together."""

import collections
import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config as config_lib
from gpt_jax import knobs, validation
from gpt_jax.data import loader
from gpt_jax.data.batches import batch, chunks, spans, stream
from tests import raised

EOS, MASK, START, PAD = 1, 2, 3, 4
_FIRST_ID = 5  # ids from here on are text


def _rows(tokens, kind, block_size):
  """Rows of a text with spans left out, and of the text as it is."""
  texts = chunks.chunk(
    config_lib.DataConfig(chunks=kind),
    stream.Split(
      stream.Tokens((tokens.astype(np.uint16),)),
      np.array([[0, len(tokens)]]),
      lambda: np.zeros((0, 2), int),
      lambda: np.zeros(0, int),
    ),
    task='spans',
    block_size=block_size,
    start_id=START,
    end_ids=(),
    pad_id=PAD,
  )
  made, numbers = spans.Spans(texts, MASK, EOS, START, PAD), np.arange(len(texts))
  assert len(made) == len(texts)
  return made.rows(numbers), texts.rows(numbers)


def _known(ids):
  """The ids up to the padding, which is at the end."""
  known = ids[ids != batch.IGNORED].tolist()
  assert ids.tolist() == known + [batch.IGNORED] * (len(ids) - len(known))
  return known


def _split(ids):
  """What is before, between and behind the masks."""
  parts: list[list[int]] = [[]]
  for token in ids:
    if token == MASK:
      parts.append([])
    else:
      parts[-1].append(token)
  return parts


@hypothesis.given(
  st.sampled_from(['windows', 'partition']),
  st.integers(3, 40),
  st.integers(0, 60),
  st.sampled_from([0.0, 0.1, 0.9]),
  st.integers(0, 2**31),
)
def test_spans_in_the_places_of_their_masks_are_the_text(kind, size, more, ends, seed):
  random = np.random.default_rng(seed)
  tokens = random.integers(_FIRST_ID, 1000, size + 1 + more)
  tokens[random.random(len(tokens)) < ends] = EOS
  found, texts = _rows(tokens, kind, size)
  assert found.segments is None and found.sources.shape == texts.inputs.shape
  assert found.inputs.shape == found.targets.shape == (len(texts.inputs), spans.target_length(size))
  for source, inputs, targets, text, follows in zip(
    found.sources, found.inputs, found.targets, *texts[:2], strict=True
  ):
    text = text[follows != batch.IGNORED].tolist()
    kept, target = _split(_known(source)), _known(targets)
    assert inputs.tolist() == [START, *target[:-1]] + [PAD] * (len(inputs) - len(target))
    before, *out = _split(target[:-1])
    assert target[-1] == EOS and not before and all(out) and len(out) == len(kept) - 1
    assert all(kept[1:-1]), 'something is between two spans'
    again = kept[0] + [
      token for pair in zip(out, kept[1:], strict=True) for part in pair for token in part
    ]
    assert again == text
    most, number = spans.sizes(len(text))
    assert not {EOS, MASK} & {token for span in out for token in span}
    if EOS in text:
      assert sum(map(len, out)) <= most
    else:
      assert (sum(map(len, out)), len(out)) == (most, number)


def test_15_percent_are_left_out_in_spans_of_3():
  for length, expected in ((1, (1, 1)), (20, (3, 1)), (64, (10, 3)), (512, (77, 26))):
    assert spans.sizes(length) == expected


@pytest.mark.parametrize('most', [8, 11])
def test_each_way_to_place_spans_is_as_likely(most, monkeypatch):
  monkeypatch.setattr(spans, 'sizes', lambda R: (np.full_like(R, 4), np.full_like(R, 2)))
  N = 30_000
  chosen_RL = spans.choose(np.arange(N), np.full(N, 8), most)
  assert chosen_RL.shape == (N, most)
  counts = collections.Counter(row.tobytes() for row in chosen_RL)
  # 3 ways to cut 4 tokens in two, and 10 to put 4 others before, between and behind them.
  assert len(counts) == 30
  chi2 = sum((n - N / 30) ** 2 / (N / 30) for n in counts.values())
  assert chi2 < 58.3, 'of 29 degrees of freedom, p = 0.001'


def test_a_row_depends_on_its_number_alone():
  numbers, lengths = np.array([9, 2**40, 0, 9]), np.array([30, 40, 1, 30])
  together = spans.choose(numbers, lengths, 40)
  for i in range(4):
    np.testing.assert_array_equal(spans.choose(numbers[[i]], lengths[[i]], 40)[0], together[i])
  np.testing.assert_array_equal(together[0], together[3])
  others = spans.choose(np.arange(50), np.full(50, 128), 128)
  assert len({row.tobytes() for row in others}) == 50


def _config(folder, **values):
  path = folder / 'text.txt'
  path.write_text('the sea and the sand, ' * 50)
  defaults = {
    'task': 'spans',
    'model.kind': 'encoder_decoder',
    'model.block_size': 16,
    'data.source': f'text:{path}',
    'data.tokenizer': 'char',
    'data.special_tokens': 'mask eos',
    'data.cache_dir': str(folder / 'cache'),
    'data.processes': 1,
  }
  return knobs.replace(config_lib.Config(), {**defaults, **values})


def test_a_run_has_rows_of_spans_in_all_splits(tmp_path):
  config = _config(tmp_path, **{'data.test_fraction': 0.1})
  validation.validate(config)
  data = loader.open_data(config, check=None)
  assert data.test is not None
  for dataset in (data.train, data.val, data.test):
    assert 'left out in spans' in dataset.summary
    rows = dataset.val_rows(np.arange(4), total=4)
    text = data.tokenizer.decode(rows.sources[rows.sources != batch.IGNORED])
    assert len(text) == 4 * (16 - 2) and set(text) <= set('the sea and the sand, ')
    assert (rows.targets == data.tokenizer.eos_id).sum(1).tolist() == [1] * 4


@pytest.mark.parametrize(
  ('key', 'values'),
  [
    ('model.kind', {'model.kind': 'encoder'}),
    ('data.special_tokens', {'data.special_tokens': 'eos'}),
    ('data.tokenizer', {'data.tokenizer': 'gpt2', 'data.special_tokens': ''}),
    ('data.chunks', {'data.chunks': 'packed'}),
    ('data.chunks', {'data.chunks': 'sentences', 'data.max_length': 16, 'data.min_length': 9}),
    ('data.template', {'data.template': '{prompt}'}),
    ('model.block_size', {'model.block_size': 2}),
  ],
)
def test_what_does_not_go_with_spans_is_refused(tmp_path, key, values):
  config = _config(tmp_path, **values)
  assert [error.key for error in validation.problems(config)] == [key]


def test_a_tokenizer_without_eos_is_refused(tmp_path):
  config = _config(tmp_path, **{'data.special_tokens': 'mask'})
  error = raised.user_error(loader.open_data, config, check=None)
  assert error.key == 'data.special_tokens' and 'eos' in error.fix
  loader.open_data(dataclasses.replace(config, task='masked'), check=None)
