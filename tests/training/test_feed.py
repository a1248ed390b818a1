"""Batches on the devices: the same whatever computes them, made ahead, from any kind of chunk."""

import hashlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors, stopping
from gpt_jax.training import feed
from gpt_jax.training import program as program_lib

_CHUNKS = ['windows', 'partition', 'packed', 'sentences']


def make_config(folder, chunks, source, **mesh):
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=1, n_head=1, n_embd=8, block_size=16, vocab_size=257, pad_vocab_to=1
    ),
    data=config_lib.DataConfig(
      source=source,
      tokenizer='byte',
      chunks=chunks,
      split='document',
      val_fraction=0.3,
      min_length=4,
      max_length=17,
      cache_dir=str(folder / 'cache'),
      processes=1,
    ),
    train=config_lib.TrainConfig(batch_size=8, gradient_accumulation=2, eval_batches=3),
    mesh=config_lib.MeshConfig(**mesh),
  )


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Two sets of documents, mixed."""
  folder = tmp_path_factory.mktemp('text')
  for name, words in [('a', 'some short words. and more.'), ('b', 'other text. ends. here.')]:
    lines = [json.dumps({'text': f'{words} {i}. ' * (1 + i % 3)}) for i in range(40)]
    (folder / f'{name}.jsonl').write_text('\n'.join(lines))
  return f'3*jsonl:{folder}/a.jsonl + 1*jsonl:{folder}/b.jsonl'


def load(config):
  with stopping.StopRequest() as stop:
    return feed.cut(config, feed.load(config.data, stop))


def rows_of(batch):
  """The rows of a batch on this process, by their place in it."""
  found: dict[str, str] = {}
  for name, array in batch._asdict().items():
    for shard in [] if array is None else array.addressable_shards:
      part, rows, _ = shard.index
      for i, row in zip(
        itertools.product(range(array.shape[0])[part], range(array.shape[1])[rows]),
        np.asarray(shard.data).reshape(-1, array.shape[-1]),
        strict=True,
      ):
        key = f'{name} {i}'
        digest = hashlib.sha256(row.tobytes()).hexdigest()
        assert found.setdefault(key, digest) == digest
  return found


def hashes(text, program):
  """Those of some training and validation batches."""
  return {
    **{f'train {i}': rows_of(text.train_batch(program, i)) for i in (0, 1, 12345)},
    **{f'val {i}': rows_of(text.val_batch(program, i)) for i in range(3)},
  }


@pytest.mark.parametrize('chunks', _CHUNKS)
def test_batches_are_the_same_on_every_mesh(tmp_path, source, chunks):
  wanted = None
  for mesh in [
    {'data': 4, 'fsdp': 2},
    {'data': 1, 'fsdp': 1, 'tensor': 8},
    {'data': 2, 'fsdp': 2, 'tensor': 2},
  ]:
    config = make_config(tmp_path, chunks, source, **mesh)
    config.model.n_head, config.model.pad_vocab_to, config.train.batch_size = 8, 8, 16
    found = hashes(load(config), program_lib.build(config))
    assert {len(batch) for batch in found.values()} == {16 * (3 if chunks == 'packed' else 2)}
    wanted = wanted or found
    assert found == wanted


_HOST = """
import json, pathlib, sys
import jax
folder, chunks, source, number, count, port = sys.argv[1:]
jax.config.update('jax_num_cpu_devices', 4 // int(count))
if count != '1':
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'127.0.0.1:{port}', int(count), int(number))
sys.path.insert(0, sys.argv[0])
import importlib.util
spec = importlib.util.spec_from_file_location('test_feed', PATH)
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
from gpt_jax.training import program as program_lib
found = {}
for kind in chunks.split():
  config = test.make_config(pathlib.Path(folder), kind, source, data=4)
  found[kind] = test.hashes(test.load(config), program_lib.build(config))
print(json.dumps(found))
"""


def run_hosts(folder, source, count):
  """The rows that each of `count` processes has, kind by kind."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  program = _HOST.replace('PATH', repr(__file__))
  hosts = [
    subprocess.Popen(
      [
        sys.executable,
        '-c',
        program,
        str(folder),
        ' '.join(_CHUNKS),
        source,
        str(number),
        str(count),
        str(port),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env={**os.environ, 'XLA_FLAGS': ''},
      text=True,
    )
    for number in range(count)
  ]
  outputs = [host.communicate(timeout=240) for host in hosts]
  for host, (_, problem) in zip(hosts, outputs, strict=True):
    assert host.returncode == 0, problem
  return [json.loads(out) for out, _ in outputs]


def test_every_number_of_hosts_has_the_same_batches_each_its_own_rows(tmp_path, source):
  (wanted,) = run_hosts(tmp_path, source, 1)
  for count in (2, 4):
    hosts = run_hosts(tmp_path, source, count)
    for kind, name in itertools.product(_CHUNKS, wanted[_CHUNKS[0]]):
      rows = [host[kind][name] for host in hosts]
      assert sum(map(len, rows)) == len(wanted[kind][name]), 'a row is on two hosts'
      assert {key: row for part in rows for key, row in part.items()} == wanted[kind][name]


def test_batches_come_in_order_and_are_made_ahead():
  made = []
  asked = threading.Event()

  def make(number):
    made.append(number)
    if number == 2:
      asked.set()
    return number

  numbers = iter(range(9))
  stream = feed.ahead(make, numbers)
  assert next(stream) == 0
  assert asked.wait(10), 'none is made ahead'
  assert next(numbers) == 3, 'two are made ahead, and no more'
  assert list(stream) == [1, 2, 4, 5, 6, 7, 8]
  assert made == [0, 1, 2, 4, 5, 6, 7, 8]
  assert list(feed.ahead(make, [])) == []


def test_a_problem_in_the_other_thread_is_told_at_its_batch():
  def make(number):
    if number == 1:
      raise errors.UserError('number 1')
    return number

  stream = feed.ahead(make, range(3))
  assert next(stream) == 0
  with pytest.raises(errors.UserError, match='number 1'):
    next(stream)


def test_one_that_stops_early_leaves_no_thread():
  before = threading.active_count()
  stream = feed.ahead(lambda number: number, itertools.count())
  assert next(stream) == 0
  stream.close()
  assert threading.active_count() == before


def test_text_is_verified_before_a_run_unless_that_is_not_wanted(tmp_path, source):
  config = make_config(tmp_path, 'windows', source)
  load(config)
  (path, *_) = (tmp_path / 'cache').glob('*/tokens-00000.bin')
  path.write_bytes(b'\xff' + path.read_bytes()[1:])
  with pytest.raises(errors.UserError, match=f'SHA-256 of {path}'):
    load(config)
  config.data.verify = False
  load(config)


def test_a_stop_ends_the_encoding(tmp_path, source):
  with stopping.StopRequest() as stop:
    stop.requested = True
    with pytest.raises(errors.Stopped):
      feed.load(make_config(tmp_path, 'windows', source).data, stop)


def test_a_batch_has_the_rows_of_its_number(tmp_path, source):
  config = make_config(tmp_path, 'windows', source, data=4, fsdp=2)
  config.train.batch_size = 16
  text, program = load(config), program_lib.build(config)
  for i in range(3):
    numbers = np.arange(16 * i, 16 * (i + 1))
    for batch, rows in [
      (text.train_batch(program, i), text.train.train_rows(numbers)),
      (text.val_batch(program, i), text.val.val_rows(numbers, total=16 * 3)),
    ]:
      assert np.array_equal(np.concatenate(batch.inputs_ABL), rows.inputs)
      assert np.array_equal(np.concatenate(batch.targets_ABL), rows.targets)


def test_the_mixture_has_the_weights_and_the_seed_of_the_config(tmp_path, source):
  config = make_config(tmp_path, 'windows', source)
  rows = [load(config).train.train_rows(np.arange(400)).inputs]
  assert load(config).train.weights == load(config).val.weights == (3, 1)
  config.data.seed = 1
  rows.append(load(config).train.train_rows(np.arange(400)).inputs)
  assert not np.array_equal(*rows)


def test_each_side_has_its_own_text(tmp_path):
  (tmp_path / 'text.txt').write_text('a' * 300 + 'b' * 100)
  config = make_config(tmp_path, 'windows', f'text:{tmp_path}/text.txt')
  config.data.split, config.data.val_fraction, config.train.batch_size = 'position', 0.25, 16
  text, program = load(config), program_lib.build(config)
  assert set(np.unique(text.train_batch(program, 0).inputs_ABL)) == {ord('a')}
  assert set(np.unique(text.val_batch(program, 0).inputs_ABL)) <= {ord('b'), 256}


@pytest.mark.parametrize(
  ('tokenizer', 'specials', 'start', 'padding'),
  [
    ('byte', '', 256, 256),
    ('byte', 'bos', 257, 256),
    ('char', '', None, 0),
    ('char', 'bos', 2, 0),
    ('char', 'bos eos pad', 2, 4),
  ],
)
def test_special_tokens_open_and_fill_packed_rows(tmp_path, tokenizer, specials, start, padding):
  lines = [json.dumps({'text': 'ab' * (4 + i % 4)}) for i in range(60)]
  (tmp_path / 'ab.jsonl').write_text('\n'.join(lines))
  config = make_config(tmp_path, 'packed', f'jsonl:{tmp_path}/ab.jsonl')
  config.data.tokenizer, config.data.special_tokens = tokenizer, specials
  config.data.split = 'position'
  rows = load(config).train.train_rows(np.arange(40))
  begins = np.diff(rows.segments, axis=1, prepend=0) > 0
  opened = set(np.unique(rows.inputs[begins]).tolist())
  assert opened == {start} if start is not None else 0 in opened
  assert set(np.unique(rows.inputs[rows.segments == 0]).tolist()) <= {padding}
  assert (rows.segments == 0).any()


def test_the_end_of_a_sentence_must_be_a_token(tmp_path, source):
  config = make_config(tmp_path, 'sentences', source)
  config.data.sentence_end = '. etc.'
  with pytest.raises(errors.UserError, match='data.sentence_end: .*etc.'):
    load(config)


def test_targets_follow_their_inputs_on_the_devices(tmp_path, source):
  config = make_config(tmp_path, 'windows', source, data=4, fsdp=2)
  config.train.batch_size = 16
  batch = load(config).train_batch(program_lib.build(config), 3)
  inputs, targets = jax.device_get((batch.inputs_ABL, batch.targets_ABL))
  assert np.array_equal(inputs[..., 1:], targets[..., :-1])
