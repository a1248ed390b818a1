"""Batches are pure functions of the numbers of their rows, on any number of hosts."""

import hashlib

import numpy as np
import pytest

from gpt_jax import config
from gpt_jax.data import batches
from gpt_jax.data.batches import chunks, spans, stream

TASKS = {'documents': 'classify', 'conversations': 'instruct', 'pairs': 'translate'}
KINDS = ('windows', 'partition', 'packed', 'sentences', 'spans', *TASKS)
_L = 16


def _split(size, seed, first_id, *, is_turns):
  """Documents of 1 to 60 tokens in three shards; about every fifth token ends a sentence."""
  random = np.random.default_rng(seed)
  ids = random.integers(first_id, first_id + 50, size).astype(np.uint16)
  ends = np.unique([0, *random.integers(1, size, size // 30), size])
  if is_turns:  # at least two tokens each
    ends = np.unique([0, *random.integers(1, size // 2, size // 6) * 2, size])
  documents = np.stack([ends[:-1], ends[1:]], 1)
  shards = tuple(np.split(ids, [size // 3, size // 2]))
  labels = random.integers(0, 2, len(documents))
  if is_turns:
    labels = np.arange(len(documents)) % 2 * 2  # first, response
  spans = np.array([[0, size]])
  return stream.Split(stream.Tokens(shards), spans, lambda: documents, lambda: labels)


def _chunks(kind, size=3000, seed=0, first_id=100):
  is_chunks = {} if kind in (*TASKS, 'spans') else {'chunks': kind}
  data = config.DataConfig(min_length=4, max_length=_L + 1, **is_chunks)
  made = chunks.chunk(
    data,
    _split(size, seed, first_id, is_turns=kind in ('conversations', 'pairs')),
    task=TASKS.get(kind, 'next_token'),
    block_size=_L,
    start_id=1,
    end_ids=range(first_id, first_id + 10),
    pad_id=0,
  )
  return spans.Spans(made, 2, 3, 1, 0) if kind == 'spans' else made


def _dataset(kind, mixture, seed=0):
  """One source, or two whose ids differ: a pool or with weights."""
  first, second = _chunks(kind), _chunks(kind, 900, 1, 1000)
  if mixture == 'alone':
    return batches.Dataset((first,), None, seed)
  return batches.Dataset((first, second), (0.3, 0.7) if mixture == 'weights' else None, seed)


def _hash(*parts):
  """The same for the rows of a batch, whether they come together or in parts."""
  digest = hashlib.sha256()
  for number, column in enumerate(zip(*parts, strict=True)):
    if number == 3 and column[0] is None:
      continue  # as before there were sources
    digest.update(b'none' if column[0] is None else np.concatenate(column).tobytes())
  return digest.digest()


mixtures = pytest.mark.parametrize('mixture', ['alone', 'pool', 'weights'])


@mixtures
def test_the_places_of_training_rows_are_where_they_come_from(mixture):
  dataset, numbers = _dataset('packed', mixture), np.arange(7, 20)
  parts = [
    chunks.rows(places)
    for chunks, places in zip(dataset.chunks, dataset.train_places(numbers), strict=True)
  ]
  found = [row.tobytes() for part in parts for row in part.inputs]
  assert sorted(found) == sorted(row.tobytes() for row in dataset.train_rows(numbers).inputs)


@pytest.mark.parametrize('kind', KINDS)
@mixtures
def test_a_run_that_resumes_on_other_hosts_sees_the_same_batches(kind, mixture):
  batch_size, num_steps = 8, 300
  straight = _dataset(kind, mixture)
  hashes = [
    _hash(straight.train_rows(step * batch_size + np.arange(batch_size)))
    for step in range(num_steps)
  ]
  assert len(set(hashes)) > 0.99 * num_steps
  for step in np.random.default_rng(0).integers(0, num_steps, 20):
    again = _dataset(kind, mixture) if step % 10 == 0 else straight
    for hosts in (1, 2, 4):
      shares = np.split(step * batch_size + np.arange(batch_size), hosts)
      parts = [again.train_rows(share) for share in shares]
      assert _hash(*parts) == hashes[step]


@pytest.mark.parametrize('kind', KINDS)
def test_an_epoch_has_each_row_once(kind):
  chunked = _chunks(kind)
  dataset = batches.Dataset((chunked,), None, 5)
  wanted = sorted(map(_bytes, _single(chunked.rows(np.arange(len(chunked))))))
  orders = []
  for epoch in range(2):
    rows = dataset.train_rows(epoch * len(chunked) + np.arange(len(chunked)))
    orders.append([_bytes(row) for row in _single(rows)])
    assert sorted(orders[-1]) == wanted
  assert orders[0] != orders[1]


def _single(rows):
  return zip(*(column for column in rows if column is not None), strict=True)


def _bytes(row):
  return b''.join(column.tobytes() for column in row)


@pytest.mark.parametrize('kind', KINDS)
def test_rows_stand_in_the_order_asked_for(kind):
  dataset = _dataset(kind, 'weights')
  numbers = np.array([70_000, 3, 12, 3, 5])
  whole = dataset.train_rows(numbers)
  alone = [dataset.train_rows(numbers[i : i + 1]) for i in range(len(numbers))]
  assert _hash(*alone) == _hash(whole)
  values = dataset.val_rows(np.array([9, 0, 4]), total=10)
  alone = [dataset.val_rows(np.array([i]), total=10) for i in (9, 0, 4)]
  assert _hash(*alone) == _hash(values)


@pytest.mark.parametrize('kind', KINDS)
@mixtures
def test_the_seed_orders_training_and_not_validation(kind, mixture):
  one, other = (_dataset(kind, mixture, seed) for seed in (0, 1))
  numbers = np.arange(32)
  assert _hash(one.train_rows(numbers)) != _hash(other.train_rows(numbers))
  assert _hash(one.val_rows(numbers, total=32)) == _hash(other.val_rows(numbers, total=32))


def test_validation_divides_its_rows_by_weight():
  for mixture, wanted in (('weights', 70), ('pool', 23)):
    rows = _dataset('windows', mixture).val_rows(np.arange(100), total=100)
    assert (rows.targets >= 1000).all(axis=1).sum() == wanted


@pytest.mark.parametrize(
  ('kind', 'digest'),
  [
    ('windows', '71366f8df6e8ecae'),
    ('partition', 'b1778aa50c88b8fd'),
    ('packed', '838055eafc45f462'),
    ('sentences', 'a93fd101274086f6'),
    ('documents', '3a20ed7bd335466b'),
    ('conversations', 'dcc95879f05a0e8f'),
    ('pairs', '50aa32b45f13b82d'),
    ('spans', '6387f90ddde06ab6'),
  ],
)
def test_batches_are_the_same_on_every_machine_and_version(kind, digest):
  """A record: if it fails, runs that resume see other text than they would have seen."""
  dataset, numbers = _dataset(kind, 'weights', seed=1337), 20 + np.arange(4)
  rows = [dataset.train_rows(numbers), dataset.val_rows(numbers, total=40)]
  assert _hash(*rows).hex()[:16] == digest
