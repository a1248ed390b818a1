"""Runs as a whole: what they leave behind, and that interrupting them changes nothing."""

import dataclasses
import json
import pathlib
import re
import shutil
import signal
import types

import jax
import numpy as np
import pytest

from gpt_jax import atomic, errors, json_files, models, progress, shutdown
from gpt_jax.data import loader
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import fit, loop, metrics, plot, report
from gpt_jax.training import program as program_lib
from gpt_jax.training import run as run_lib
from gpt_jax.weights import run_dir, saved_model
from tests.training import runs

pytestmark = pytest.mark.usefixtures('quick_runs')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return runs.make_config(tmp_path_factory.mktemp('text'))


@pytest.fixture(scope='module')
def unbroken(config, tmp_path_factory):
  """A run from start to end in one go."""
  return runs.run(config, tmp_path_factory.mktemp('unbroken') / 'run')


def _fail(*_, **__):
  raise AssertionError('must not be reached')


def _run_until(where, config, path, number=signal.SIGTERM):
  """Runs until a signal comes after a step, or at the beginning or end of its evaluation."""
  kind, step = where
  original = loop.Loop._evaluate

  def evaluate(self, state, current):
    if (kind, current) == ('evaluation', step):
      signal.raise_signal(number)
    result = original(self, state, current)
    if (kind, current) == ('evaluated', step):
      signal.raise_signal(number)
    return result

  with pytest.MonkeyPatch.context() as patch:
    if kind == 'step':
      runs.at_step(patch, step, lambda: signal.raise_signal(number))
    patch.setattr(loop.Loop, '_evaluate', evaluate)
    with pytest.raises(errors.Stopped):
      runs.run(config, path)


def _replace(patch, name, change):
  """Replaces a function of the program of later runs by what `change` returns for it."""
  build = program_lib.build

  def changed(*args):
    program = build(*args)
    return dataclasses.replace(program, **{name: change(getattr(program, name))})

  patch.setattr(program_lib, 'build', changed)


def test_a_run_leaves_what_the_contract_says(unbroken):
  names = ['config.json', 'tokenizer.json', 'text.json', 'metrics.jsonl', 'checkpoints', 'loss.png']
  assert sorted(path.name for path in unbroken.iterdir()) == sorted(names)
  written = metrics.read(unbroken / 'metrics.jsonl')
  train = [line for line in written if 'train/loss' in line]
  assert [line['step'] for line in train] == list(range(1, runs.STEPS + 1))
  keys = {'train/grad_norm', 'train/learning_rate', 'perf/tokens_per_second', 'time'}
  assert all(line.keys() >= keys for line in train)
  val = [line for line in written if 'val/loss' in line]
  assert [line['step'] for line in val] == [0, 3, 6]
  assert val[-1]['val/loss'] < val[0]['val/loss'] - 0.2, 'nothing was learned'
  assert val[0]['val/perplexity'] == pytest.approx(np.exp(val[0]['val/loss']))


@pytest.mark.parametrize(
  'where', [('step', 1), ('evaluated', 3), ('evaluation', 0), ('evaluation', 6)]
)
def test_a_stopped_and_resumed_run_is_the_unbroken_run_bit_for_bit(
  where, config, unbroken, tmp_path
):
  number = signal.SIGTERM if where[1] % 2 else signal.SIGINT
  handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  _run_until(where, config, tmp_path / 'run', number)
  assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
  # A step is read after the next one was taken.
  assert run_lib.Run(tmp_path / 'run').step == where[1] + (where[0] == 'step')
  if where[0] == 'evaluation':
    assert where[1] not in runs.val_losses(tmp_path / 'run'), 'it was evaluated to the end'
  runs.assert_same(runs.run(config, tmp_path / 'run'), unbroken)
  models = [saved_model.open_model(path) for path in (tmp_path / 'run', unbroken)]
  assert models[0].step == models[1].step == runs.STEPS, 'the best is another'


def test_a_crashed_run_resumes_from_its_last_checkpoint_bit_for_bit(
  config, unbroken, tmp_path, monkeypatch
):
  def crash():
    raise RuntimeError('power cut')

  with monkeypatch.context() as patch:
    runs.at_step(patch, 6, crash)
    with pytest.raises(RuntimeError, match='power cut'):
      runs.run(config, tmp_path / 'run')
  with (tmp_path / 'run' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 9, "train/lo')  # a line that was being written
  runs.assert_same(runs.run(config, tmp_path / 'run'), unbroken)


def test_a_finished_run_is_reported_without_opening_data_or_devices(
  config, unbroken, monkeypatch, capsys
):
  before = runs.files(unbroken)
  for module, name in ((loader, 'open_data'), (mesh_lib, 'make_mesh'), (program_lib, 'build')):
    monkeypatch.setattr(module, name, _fail)
  runs.run(config, unbroken)
  best = min((loss, step) for step, loss in runs.val_losses(unbroken).items() if step)
  assert f'best val loss {best[0]:.4f} at step {best[1]};' in capsys.readouterr().out
  assert runs.files(unbroken) == before


def _sums(loss):
  return {'loss': np.float32(loss), 'targets': np.int32(1)}


def test_the_best_step_is_the_same_in_all_reports(config, tmp_path, monkeypatch, capsys):
  """Also if its evaluation was stopped, after its checkpoint was saved."""
  losses = iter([1.0, 2.0, 4.0])  # the lowest before the first step
  config = runs.change(config, train__eval_batches=1)
  _replace(monkeypatch, 'eval_step', lambda _: lambda *_: _sums(next(losses)))
  _run_until(('evaluation', 3), config, tmp_path / 'run')
  runs.run(config, tmp_path / 'run')
  output = capsys.readouterr().out
  *_, marked = re.findall(r'step (\d)/6  val loss .*  best$', output, re.MULTILINE)
  (finished,) = re.findall(r'best val loss .* at step (\d)', output)
  assert marked == finished == str(saved_model.open_model(tmp_path / 'run').step) == '3'


def test_a_run_without_a_lower_loss_for_its_patience_ends_and_may_go_on(
  config, unbroken, tmp_path, monkeypatch
):
  losses = iter([9.0, 2.0, 1.0, 3.0, 2.0])
  patient = runs.change(config, train__eval_every=1, train__eval_batches=1, train__patience=2)
  path = tmp_path / 'run'
  with monkeypatch.context() as patch:
    _replace(patch, 'eval_step', lambda _: lambda *_: _sums(next(losses)))
    _run_until(('evaluation', 4), patient, path)  # stopped in its last evaluation
    runs.run(patient, path)
  assert list(runs.val_losses(path)) == [0, 1, 2, 3, 4]
  assert saved_model.open_model(path).step == 2 and run_lib.Run(path).step == 4
  before = runs.files(path)
  runs.run(patient, path)
  assert runs.files(path) == before
  runs.run(runs.change(config, train__eval_every=1, train__patience=4), path)
  runs.assert_trees_equal(runs.saved_state(path), runs.saved_state(unbroken))


def test_a_run_stops_after_its_minutes_and_goes_on(config, unbroken, tmp_path, monkeypatch):
  path = tmp_path / 'run'
  with monkeypatch.context() as patch:
    guards = []
    patch.setattr(
      shutdown.Guard, 'stop_after', lambda guard, minutes: guards.append((guard, minutes))
    )
    runs.at_step(patch, 2, lambda: setattr(guards[0][0], 'requested', True))
    with pytest.raises(errors.Stopped):
      runs.run(runs.change(config, train__max_minutes=7.0), path)
    assert guards[0][1] == 7.0
  runs.assert_same(runs.run(config, path), unbroken)


def test_a_finished_run_can_be_extended(config, unbroken, tmp_path):
  path = runs.run(runs.change(config, train__steps=3), tmp_path / 'run')
  assert max(runs.val_losses(path)) == 3
  runs.assert_same(runs.run(config, path), unbroken)


def test_a_run_resumes_on_another_mesh(config, unbroken, tmp_path):
  _run_until(('step', 3), config, tmp_path / 'run')
  runs.run(runs.change(config, mesh__fsdp=2), tmp_path / 'run')
  mine, theirs = runs.lines(tmp_path / 'run'), runs.lines(unbroken)
  assert [line['step'] for line in mine] == [line['step'] for line in theirs]
  for a, b in zip(mine, theirs, strict=True):
    # Float32 sums in another order change no more, over these few steps.
    assert a == pytest.approx(b, rel=1e-4)


def test_a_second_signal_ends_the_run_at_once(config, tmp_path, monkeypatch):
  def twice():
    signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(shutdown, '_ECHO_SECONDS', -1)
    signal.raise_signal(signal.SIGINT)

  runs.at_step(monkeypatch, 2, twice)
  with pytest.raises(KeyboardInterrupt):
    runs.run(config, tmp_path / 'run')


def test_a_stop_while_text_is_prepared_leaves_nothing(config, tmp_path, monkeypatch):
  config = runs.change(config, data__cache_dir=str(tmp_path / 'cache'))
  monkeypatch.setattr(mesh_lib, 'start', lambda _: signal.raise_signal(signal.SIGTERM))
  with pytest.raises(errors.Stopped):
    runs.run(config, tmp_path / 'run')
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_a_run_that_has_saved_nothing_may_change_its_config(config, tmp_path, monkeypatch):
  def no_memory():
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate')

  with monkeypatch.context() as patch:
    runs.at_step(patch, 1, no_memory)
    patch.setattr(fit, 'advice', lambda _: 'what fits')
    with pytest.raises(errors.UserError, match='what fits'):
      runs.run(config, tmp_path / 'run')
  other = runs.change(config, data__seed=5, train__steps=1)
  assert [line['step'] for line in runs.lines(runs.run(other, tmp_path / 'run'))] == [0, 1, 1]


def test_changed_text_is_refused_before_anything_is_compiled(config, unbroken, monkeypatch):
  before, text = runs.files(unbroken), pathlib.Path(config.data.source.removeprefix('text:'))
  original = text.read_text()
  monkeypatch.setattr(program_lib, 'build', _fail)
  try:
    text.write_text(original.replace('the sea', 'sea the'))
    with pytest.raises(errors.UserError) as e:
      runs.run(runs.change(config, train__steps=9), unbroken)
  finally:
    text.write_text(original)
  assert e.value.key == 'data.source'
  assert runs.files(unbroken) == before


def test_a_config_of_another_run_is_not_believed(config, unbroken, tmp_path, monkeypatch):
  shutil.copytree(unbroken, tmp_path / 'run')
  values = json_files.read(tmp_path / 'run' / 'config.json')
  values['model']['n_head'] = 1
  atomic.write_json(tmp_path / 'run' / 'config.json', values)
  build = program_lib.build

  def without_compiling(config, mesh):
    program = build(runs.change(config, model__n_head=2), mesh)
    return dataclasses.replace(program, config=config)

  monkeypatch.setattr(program_lib, 'build', without_compiling)
  with pytest.raises(errors.UserError) as e:
    runs.run(runs.change(config, model__n_head=1, train__steps=9), tmp_path / 'run')
  assert e.value.key == str(tmp_path / 'run' / 'config.json')


@pytest.mark.parametrize('chunks', ['packed', 'sentences'])
def test_rows_that_are_not_full_train_and_resume(config, tmp_path, chunks):
  """Split by document."""
  (tmp_path / 'text.jsonl').write_text(
    '\n'.join(json.dumps({'text': 'a b. ' * (i % 7) + 'c d e. '}) for i in range(60))
  )
  data = {'source': f'jsonl:{tmp_path}/text.jsonl', 'chunks': chunks, 'split': 'document'}
  data |= {'val_fraction': 0.4, 'min_length': 3, 'max_length': 9}
  config = runs.change(config, **{f'data__{key}': value for key, value in data.items()})
  unbroken = runs.run(config, tmp_path / 'unbroken')
  losses = runs.val_losses(unbroken)
  assert losses[runs.STEPS] < 0.95 * losses[0]
  assert losses[runs.STEPS] == pytest.approx(_mean_loss(config, unbroken), rel=1e-5)
  _run_until(('step', 3), config, tmp_path / 'broken')
  runs.assert_same(runs.run(config, tmp_path / 'broken'), unbroken)


_AVERAGED = {'optimizer__kind': 'muon', 'optimizer__ema_decay': 0.8, 'optimizer__cautious': True}


def test_a_run_with_an_average_shows_it_and_goes_on_from_what_it_averages(config, tmp_path):
  config = runs.change(config, **_AVERAGED)
  path = runs.run(config, tmp_path / 'run')
  assert runs.val_losses(path)[runs.STEPS] == pytest.approx(_mean_loss(config, path), rel=1e-5)
  plain = runs.run(runs.change(config, optimizer__ema_decay=0.0), tmp_path / 'plain')
  raw, state = runs.saved_state(plain)['params'], runs.saved_state(path)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
    state['optimizer'].average,
    raw,
  )
  assert not np.allclose(state['params']['wte']['embedding'], raw['wte']['embedding'], atol=1e-3)
  _run_until(('step', 3), config, tmp_path / 'broken')
  runs.assert_same(runs.run(config, tmp_path / 'broken'), path)


def test_an_average_begins_with_the_model_that_a_run_starts_from(config, unbroken, tmp_path):
  changes = {'init_from': str(unbroken), 'train__steps': 1}
  path = runs.run(runs.change(config, **changes, **_AVERAGED), tmp_path / 'run')
  found = runs.val_losses(path)
  assert found[0] == pytest.approx(runs.val_losses(unbroken)[runs.STEPS], rel=1e-5)
  assert found[1] != found[0]


def _mean_loss(config, path):
  """Returns the mean over all targets of an evaluation of the last checkpoint, by NumPy."""
  model = run_dir.RunDir(path).read_config().model
  total = config.train.eval_batches * config.train.batch_size
  rows = loader.open_data(config, check=None).val.val_rows(np.arange(total), total=total)
  variables = {'params': runs.saved_state(path)['params']}
  apply = jax.jit(models.make(model).apply)
  logits_BLV = np.float64(apply(variables, rows.inputs, segments_BL=rows.segments)[0])
  losses_BLV = np.log(np.exp(logits_BLV).sum(-1, keepdims=True)) - logits_BLV
  losses_BL = np.take_along_axis(losses_BLV, np.maximum(rows.targets, 0)[..., None], -1)[..., 0]
  return float(losses_BL[rows.targets >= 0].mean())


@pytest.fixture
def spend(monkeypatch):
  """Makes time pass for the loop, by seconds, only when it is called."""
  clock = types.SimpleNamespace(now=0.0)

  def add(seconds):
    clock.now += seconds

  monkeypatch.setattr(loop, 'time', types.SimpleNamespace(monotonic=lambda: clock.now))
  return add


def test_the_picture_is_drawn_at_once_at_the_end_and_twice_a_minute(
  config, spend, tmp_path, monkeypatch
):
  drawn = []
  monkeypatch.setattr(plot, 'draw', lambda lines, *_, **__: drawn.append(lines[-1]['step']))
  monkeypatch.setattr(report.Console, 'step', lambda *_: spend(20))
  runs.run(runs.change(config, train__eval_every=1), tmp_path / 'run')
  assert drawn == [1, 3, 5, 6]


def test_the_throughput_leaves_out_evaluations_and_checkpoints(
  config, spend, tmp_path, monkeypatch
):
  monkeypatch.setattr(plot, 'draw', lambda *_, **__: spend(100))
  monkeypatch.setattr(report.Console, 'step', lambda *_: spend(2))
  runs.run(runs.change(config, train__log_every=3), tmp_path / 'run')
  rates = metrics.column(metrics.read(tmp_path / 'run' / 'metrics.jsonl'), 'perf/tokens_per_second')
  assert rates == ([1, 3, 6], [16 * 8 / 2] * 3)


def test_the_bar_says_that_an_evaluation_goes_on_until_it_ends(config, tmp_path, monkeypatch):
  notes = list[str]()
  monkeypatch.setattr(progress.Bar, 'show', lambda _, *args: notes.append(args[-1]))
  runs.run(runs.change(config, train__eval_every=3), tmp_path / 'run')
  training = [note.partition(',')[2] or note for note in notes if type(note) is str]
  where = [i for i, note in enumerate(training) if note == 'evaluating']
  assert where == [0, 5, 10] and training[1] == ''
  assert all(training[i - 1] == training[i + 1] != '' for i in where[1:])


def test_a_picture_that_cannot_be_written_ends_no_run(config, tmp_path, monkeypatch, capsys):
  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(plot, 'draw', full)
  path = runs.run(config, tmp_path / 'run')
  assert runs.val_losses(path).keys() == {0, 3, 6}
  assert f'{path / "loss.png"} cannot be written' in capsys.readouterr().out
