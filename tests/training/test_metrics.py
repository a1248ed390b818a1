"""metrics.jsonl has every step once, whatever happens; its curves are drawn, and TensorBoard's."""

import collections
import io
import json
import math
import pathlib
import struct
import subprocess
import sys
import time
from typing import Any

import google_crc32c
import numpy as np
import pytest
from matplotlib import image

from gpt_jax import errors
from gpt_jax.training import event_file, plot
from gpt_jax.training import metrics as metrics_lib


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'metrics.jsonl'


def _open(path, *, resume_step=None, tensorboard=None):
  first = 0 if resume_step is None else resume_step + 1
  writers = [event_file.EventFile(tensorboard, purge_step=first)] if tensorboard else []
  return metrics_lib.MetricsLog(path, resume_step=resume_step, writers=writers)


def _write(path, steps, **kwargs):
  log = _open(path, **kwargs)
  for step in steps:
    log.write(step, {'train/loss': 1 / (step + 3), 'train/grad_norm': 1e-7 * step})


def _steps(path):
  return [line['step'] for line in metrics_lib.read(path)]


def test_lines_are_on_disk_at_once_and_read_back_exactly(path):
  assert metrics_lib.read(path) == []
  log = _open(path)
  log.write(0, {'val/loss': 4.1, 'val/perplexity': 60.3})
  log.write(1, {'train/loss': 1 / 3})
  first, second = metrics_lib.read(path)
  assert first == {'step': 0, 'val/loss': 4.1, 'val/perplexity': 60.3, 'time': first['time']}
  assert second == {'step': 1, 'train/loss': 1 / 3, 'time': second['time']}
  assert all(json.loads(line) for line in path.read_text().splitlines())


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_the_file_and_on_no_curve(path, tmp_path, value):
  log = _open(path, tensorboard=tmp_path / 'tensorboard')
  for step, loss in enumerate([1.0, value, 0.5], 1):
    log.write(step, {'train/loss': loss, 'val/loss': loss, 'val/accuracy': loss})
  for _ in range(2):
    written = [json.loads(line, parse_constant=pytest.fail) for line in path.open()]
    assert [line['train/loss'] for line in written] == [1.0, None, 0.5]
    lines = metrics_lib.read(path)
    assert math.isnan(lines[1]['train/loss'])
    assert metrics_lib.column(lines, 'val/loss') == ([1, 3], [1.0, 0.5])
    assert metrics_lib.best(lines) == (3, 0.5)
    assert _open(path, resume_step=3).has(2, 'val/loss')
  plot.draw(lines, tmp_path / 'loss.png', title='a run')
  for key in ('val/loss', 'val/accuracy'):
    plot.compare({'a run': lines}, tmp_path / 'both.png', key=key)
  assert len(_scalars(_events(tmp_path / 'tensorboard'))) == 9


@pytest.mark.parametrize('cut', [1, 5, 20])
def test_a_truncated_last_line_does_not_count(path, cut):
  _write(path, [1, 2, 3])
  path.write_bytes(path.read_bytes()[:-cut])
  assert _steps(path) == [1, 2]
  _write(path, [3], resume_step=2)
  assert _steps(path) == [1, 2, 3]


@pytest.mark.parametrize('resume_step', [0, 1, 3, 5, 9])
def test_a_resume_drops_later_lines_and_keeps_the_others_byte_for_byte(path, resume_step):
  _write(path, range(1, 6))
  lines = path.read_bytes().splitlines(keepends=True)
  kept = list(range(1, min(resume_step, 5) + 1))
  log = _open(path, resume_step=resume_step)
  assert path.read_bytes() == b''.join(lines[:resume_step])
  assert [line['step'] for line in log.lines] == kept
  log.write(resume_step + 1, {})
  assert _steps(path) == [*kept, resume_step + 1]


def test_a_new_run_begins_an_empty_file(path):
  _write(path, [0, 1, 2])
  assert _open(path).lines == [] and path.read_bytes() == b''


def test_the_time_continues_after_a_resume(path, monkeypatch):
  clock = 1000.0
  monkeypatch.setattr(time, 'monotonic', lambda: clock)
  log = _open(path)
  for step in (1, 2, 3):
    clock += 5
    log.write(step, {})
  clock += 3600  # the run was stopped
  log = _open(path, resume_step=2)
  clock += 2
  log.write(3, {})
  assert [line['time'] for line in metrics_lib.read(path)] == [5, 10, 12]


_ODD = ['"x"', '[]', '{}', 'true', '"1"']


@pytest.mark.parametrize(
  'content',
  [
    *(b'{"step": 1\n{}\n', b'5\n', b'{"train/loss": 1.0}\n', b'[]\n', b'\xff\xff\n'),
    *(b'{"step": %s}\n' % odd.encode() for odd in [*_ODD, 'null', '-1', '1.5', 'NaN', '1e999']),
    *(b'{"step": 1, "val/loss": %s}\n' % odd.encode() for odd in _ODD),
  ],
)
def test_a_damaged_file_is_named_and_kept(path, content):
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as e:
    _open(path, resume_step=3)
  assert e.value.key == str(path)
  assert path.read_bytes() == content


def test_null_is_no_number(path):
  path.write_text('{"step": 1, "val/loss": null}\n')
  (line,) = metrics_lib.read(path)
  assert math.isnan(line['val/loss']) and metrics_lib.best([line]) is None


def test_the_best_validation_loss_is_the_first_lowest_of_a_trained_model():
  def best(*losses):
    lines = [{'step': 2 * i, 'val/loss': loss} for i, loss in enumerate(losses)]
    return metrics_lib.best([*lines, {'step': 1, 'train/loss': 0.1}])

  assert best() is best(1.0) is None
  assert best(1.0, 3.0, 2.0, 2.5) == (4, 2.0)
  assert best(1.0, 3.0, 2.0, 2.0) == (4, 2.0)
  assert best(1.0, math.nan, 3.0) == (4, 3.0)


def test_the_best_classifier_has_the_fewest_errors_then_the_lowest_loss():
  def best(*errors_and_losses):
    lines = [
      {'step': 2 * i, 'val/error': error, 'val/loss': loss}
      for i, (error, loss) in enumerate(errors_and_losses, 1)
    ]
    step, _ = metrics_lib.best(lines) or (None, None)
    return step

  assert best((0.2, 0.3), (0.1, 0.9), (0.3, 0.1)) == 4
  assert best((0.1, 0.9), (0.1, 0.3), (0.1, 0.5)) == 4


def test_a_column_has_the_lines_that_have_its_key():
  lines = [{'step': 0, 'b': 1.0}, {'step': 1, 'a': 2.0}, {'step': 2, 'a': 3.0, 'b': 4.0}]
  assert metrics_lib.column(lines, 'a') == ([1, 2], [2.0, 3.0])
  assert metrics_lib.column(lines, 'c') == ([], [])


# TensorBoard.


def _masked_crc(data):
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fields(data):
  """Returns the fields of a protocol buffer (protobuf.dev/programming-guides/encoding)."""
  fields: dict[int, list[Any]] = collections.defaultdict(list)
  stream = io.BytesIO(data)

  def varint():
    (byte,) = stream.read(1)
    return byte if byte < 0x80 else byte - 0x80 + (varint() << 7)

  while stream.tell() < len(data):
    tag = varint()
    sizes = {1: lambda: 8, 2: varint, 5: lambda: 4}
    value = varint() if tag & 7 == 0 else stream.read(sizes[tag & 7]())
    fields[tag >> 3].append(value)
  return fields


def _events(folder):
  """Returns the events of all files in `folder` (tensorflow/core/util/event.proto)."""
  events = []
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      length, length_crc = struct.unpack('<QI', data[:12])
      content, crc = data[12 : 12 + length], struct.unpack('<I', data[12 + length : 16 + length])
      assert (length_crc, crc[0]) == (_masked_crc(data[:8]), _masked_crc(content))
      events.append(_fields(content))
      data = data[16 + length :]
  return events


def _scalars(events):
  """Returns (step, tag, value) of each scalar."""
  return [
    (event[2][0], _fields(value)[1][0].decode(), struct.unpack('<f', _fields(value)[2][0])[0])
    for event in events
    for summary in event[5]
    for value in _fields(summary)[1]
  ]


def test_tensorboard_files_have_the_same_scalars_and_drop_what_a_resume_repeats(path, tmp_path):
  folder = tmp_path / 'tensorboard'
  _write(path, [1, 200], tensorboard=folder)
  first = _events(folder)
  assert first[0][3] == [b'brain.Event:2']
  assert all(struct.unpack('<d', *event[1])[0] > 1e9 for event in first)
  assert _scalars(first) == [
    (1, 'train/loss', 0.25),
    (1, 'train/grad_norm', np.float32(1e-7)),
    (200, 'train/loss', np.float32(1 / 203)),
    (200, 'train/grad_norm', np.float32(2e-5)),
  ]
  _write(path, [2], resume_step=1, tensorboard=folder)
  second = _events(folder)[len(first) :]
  assert [event[2] for event in second if event[7] == [b'\x08\x01']] == [[2]]  # START
  assert {step for step, *_ in _scalars(second)} == {2}


def test_tensorboard_files_are_only_written_when_asked_for(path, tmp_path):
  _write(path, [1, 2])
  assert list(tmp_path.iterdir()) == [path]


def test_torch_is_not_imported_even_if_it_is_installed(tmp_path):
  (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
  program = (
    'import pathlib\n'
    'from gpt_jax.training import metrics\n'
    f'folder = pathlib.Path({str(tmp_path)!r})\n'
    'from gpt_jax.training import event_file\n'
    'events = event_file.EventFile(folder / "t", purge_step=0)\n'
    'log = metrics.MetricsLog(folder / "m", resume_step=None, writers=[events])\n'
    'log.write(1, {"train/loss": 1.0})\n'
  )
  root = pathlib.Path(errors.__file__).parents[1]
  subprocess.run(
    [sys.executable, '-c', program], check=True, env={'PYTHONPATH': f'{tmp_path}:{root}'}
  )
  assert len(_events(tmp_path / 't')) == 3


# The plot.


@pytest.mark.parametrize('with_val', [False, True])
def test_the_plot_is_a_picture_of_both_curves(tmp_path, with_val):
  train = [{'step': step, 'train/loss': 3 / step} for step in range(1, 9)]
  val = [{'step': step, 'val/loss': 4 / (step + 1)} for step in (0, 4, 8)]
  path = tmp_path / 'loss.png'
  path.write_bytes(b'old')
  plot.draw(train + val if with_val else train, path, title='a run')
  pixels = image.imread(path)
  assert min(pixels.shape[:2]) >= 400
  orange = int((abs(pixels[..., :3] - np.array([1.0, 127 / 255, 14 / 255])) < 0.02).all(-1).sum())
  # The legend shows both; the curve of the validation adds much more.
  assert orange > 20 and (orange > 500) == with_val
  assert list(tmp_path.iterdir()) == [path]
