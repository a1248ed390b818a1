"""metrics.jsonl has every step once, whatever happens, and its curves are drawn."""

import json
import math
import struct
import time

import numpy as np
import pytest
from matplotlib import image

from gpt_jax import errors
from gpt_jax.training import metrics as metrics_lib
from gpt_jax.training import plot


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'metrics.jsonl'


def _open(path, *, resume_step=None, tensorboard=None):
  return metrics_lib.MetricsLog(path, resume_step=resume_step, tensorboard=tensorboard)


def _write(path, steps, **kwargs):
  with _open(path, **kwargs) as log:
    for step in steps:
      log.write(step, {'train/loss': 1 / (step + 3), 'train/grad_norm': 1e-7 * step})


def test_what_is_written_is_read(path):
  with _open(path) as log:
    log.write(0, {'val/loss': 4.1, 'val/perplexity': 60.3})
    log.write(1, {'train/loss': 1 / 3})
    written = path.read_text()  # already there: a crash loses nothing
  assert path.read_text() == written
  first, second = metrics_lib.read(path)
  assert (first['step'], first['val/loss'], first['val/perplexity']) == (0, 4.1, 60.3)
  assert (second['step'], second['train/loss']) == (1, 1 / 3)
  assert set(second) == {'step', 'train/loss', 'time'}
  assert written.count('\n') == 2 and all(json.loads(line) for line in written.splitlines())


def test_without_a_file_there_are_no_lines(path):
  assert metrics_lib.read(path) == []


@pytest.mark.parametrize('cut', [1, 5, 20])
def test_a_last_line_that_was_cut_off_does_not_count(path, cut):
  _write(path, [1, 2, 3])
  path.write_bytes(path.read_bytes()[:-cut])
  assert [line['step'] for line in metrics_lib.read(path)] == [1, 2]
  _write(path, [3], resume_step=2)
  assert [line['step'] for line in metrics_lib.read(path)] == [1, 2, 3]


@pytest.mark.parametrize('resume_step', [0, 1, 3, 5, 9])
def test_a_resume_drops_later_lines_and_keeps_the_others_byte_for_byte(path, resume_step):
  _write(path, range(1, 6))
  lines = path.read_bytes().splitlines(keepends=True)
  with _open(path, resume_step=resume_step) as log:
    assert path.read_bytes() == b''.join(lines[:resume_step])
    assert [line['step'] for line in log.lines] == list(range(1, min(resume_step, 5) + 1))
    log.write(resume_step + 1, {})
  steps = [line['step'] for line in metrics_lib.read(path)]
  assert steps == [*range(1, min(resume_step, 5) + 1), resume_step + 1]


def test_a_new_start_begins_an_empty_file(path):
  _write(path, [0, 1, 2])
  with _open(path) as log:
    assert path.read_bytes() == b'' and log.lines == []


def test_the_time_goes_on_after_a_resume(path, monkeypatch):
  clock = 1000.0
  monkeypatch.setattr(time, 'monotonic', lambda: clock)
  with _open(path) as log:
    for step in (1, 2, 3):
      clock += 5
      log.write(step, {})
  clock += 3600  # the run stood still
  with _open(path, resume_step=2) as log:
    clock += 2
    log.write(3, {})
  assert [line['time'] for line in metrics_lib.read(path)] == [5, 10, 12]


@pytest.mark.parametrize(
  'content', [b'{"step": 1\n{}\n', b'5\n', b'{"train/loss": 1.0}\n', b'[]\n', b'\xff\xff\n']
)
def test_a_damaged_file_is_named_and_kept(path, content):
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as e, _open(path, resume_step=3):
    pass
  assert str(path) in str(e.value) and 'damaged' in str(e.value)
  assert path.read_bytes() == content


def test_the_best_validation_loss_is_one_of_a_trained_model(path):
  with _open(path) as log:
    assert log.best_val_loss() == math.inf
    log.write(0, {'val/loss': 1.0})
    log.write(1, {'train/loss': 0.1})
    assert log.best_val_loss() == math.inf
    for step, loss in [(2, 3.0), (4, 2.0), (6, 2.5)]:
      log.write(step, {'val/loss': loss})
    assert log.best_val_loss() == 2.0
  with _open(path, resume_step=3) as log:
    assert log.best_val_loss() == 3.0


def test_a_column_has_the_lines_that_have_it():
  lines = [{'step': 0, 'b': 1.0}, {'step': 1, 'a': 2.0}, {'step': 2, 'a': 3.0, 'b': 4.0}]
  assert metrics_lib.column(lines, 'a') == ([1, 2], [2.0, 3.0])
  assert metrics_lib.column(lines, 'c') == ([], [])


def _scalars(folder):
  """(tag, step) -> value of the TensorBoard files in `folder`, which are TFRecords of events."""
  from tensorboardX.proto import event_pb2

  found = {}
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]
      for value in event.summary.value:
        found[value.tag, event.step] = value.simple_value
  return found


def test_tensorboard_files_tell_the_same(path, tmp_path):
  folder = tmp_path / 'tensorboard'
  _write(path, [1, 2], tensorboard=folder)
  assert _scalars(folder) == {
    ('train/loss', 1): np.float32(1 / 4),
    ('train/loss', 2): np.float32(1 / 5),
    ('train/grad_norm', 1): np.float32(1e-7),
    ('train/grad_norm', 2): np.float32(2e-7),
  }


def test_tensorboard_files_are_only_written_when_asked_for(path, tmp_path):
  _write(path, [1, 2])
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('with_val', [False, True])
def test_the_plot_is_a_picture_of_both_curves(tmp_path, with_val):
  train = [{'step': step, 'train/loss': 3 / step} for step in range(1, 9)]
  val = [{'step': step, 'val/loss': 4 / (step + 1)} for step in (0, 4, 8)]
  path = tmp_path / 'loss.png'
  plot.draw(train + val if with_val else train, path, title='a run')
  assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
  pixels = image.imread(path)
  assert min(pixels.shape[:2]) >= 400

  def inked(red, green, blue):
    return int((abs(pixels[..., :3] - np.array([red, green, blue])) < 0.02).all(-1).sum())

  # The legend shows both; the curve of the validation adds much more.
  assert inked(1.0, 127 / 255, 14 / 255) > (500 if with_val else 20)
  assert (inked(1.0, 127 / 255, 14 / 255) > 500) == with_val
  assert list(tmp_path.iterdir()) == [path]


def test_a_plot_replaces_the_one_before_or_leaves_it(tmp_path, monkeypatch):
  path = tmp_path / 'loss.png'
  path.write_bytes(b'old')
  lines = [{'step': 1, 'train/loss': 1.0}, {'step': 2, 'train/loss': 0.5}]

  def fail(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr('matplotlib.figure.Figure.savefig', fail)
    with pytest.raises(OSError, match='No space'):
      plot.draw(lines, path, title='a run')
  assert path.read_bytes() == b'old'
  plot.draw(lines, path, title='a run')
  assert path.read_bytes() != b'old'
  assert list(tmp_path.iterdir()) == [path]
