"""A run with bad batches is the run that never saw them, however often it is interrupted."""

import dataclasses
import json
import math
import signal
import time
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data import batches, loader
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import metrics, objectives, recovery
from gpt_jax.training import program as program_lib
from gpt_jax.training import run as run_lib
from gpt_jax.training import step as step_lib
from gpt_jax.weights import manifest, saved_model
from tests import raised
from tests.training import runs

pytestmark = pytest.mark.usefixtures('quick_runs')

NAN, HIGH = 250, 251  # bytes that aren't in the text


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Of a program with a loss that isn't finite, or too high, for batches with these bytes."""
  original = objectives.loss

  def loss(model: Any, params: Any, part: Any, key: Any) -> Any:
    factor = jnp.where((part.inputs == NAN).any(), jnp.nan, 1.0)
    return original(model, params, part, key) * factor + 1e4 * (part.inputs == HIGH).any()

  config = runs.make_config(
    tmp_path_factory.mktemp('text'),
    train__seed=4,  # no other test has this program
    train__checkpoint_every=2,
    train__eval_every=100,
    train__max_bad_steps=2,
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(objectives, 'loss', loss)
    mesh = mesh_lib.make_mesh(config)
    data = loader.open_data(config, check=None)
    for each in (config, _averaged(config)):
      program_lib.build(program_lib.resolve(each, data.tokenizer, (), mesh), mesh)
  return config


def _averaged(config):
  return runs.change(config, optimizer__kind='muon', optimizer__ema_decay=0.8)


@pytest.fixture
def bad(config, monkeypatch):
  """Sets of the batches that are bad, which a test may fill."""
  of_kind: dict[int, set[int]] = {NAN: set(), HIGH: set()}
  original = batches.Dataset.train_rows

  def train_rows(self, numbers):
    batch = original(self, numbers)
    for token, which in of_kind.items():
      batch.inputs[np.isin(numbers // config.train.batch_size, list(which)), 0] = token
    return batch

  monkeypatch.setattr(batches.Dataset, 'train_rows', train_rows)
  return types.SimpleNamespace(nan=of_kind[NAN], high=of_kind[HIGH])


def _by_hand(config, numbers):
  """The state after steps with the batches of these numbers, None for none at all."""
  mesh = mesh_lib.make_mesh(config)
  data = loader.open_data(config, check=None)
  program = program_lib.build(program_lib.resolve(config, data.tokenizer, (), mesh), mesh)
  state, size = program.init(), config.train.batch_size
  for number in numbers:
    if number is None:
      state = state._replace(step=state.step + 1)
    else:
      first = number * size
      make = lambda rows, first=first: data.train.train_rows(first + rows)  # noqa: E731
      state, _ = program.train_step(state, mesh_lib.global_batch(make, program.tokens))
  state = step_lib.swap_average(program.config.model, state)
  return jax.device_get({'params': state.params, 'optimizer': state.opt_state})


def _check(config, path, numbers, *, skipped=0):
  """Asserts that a run took batches of these numbers, and that its metrics have each step once."""
  runs.assert_trees_equal(runs.saved_state(path), _by_hand(config, numbers))
  text = (path / 'metrics.jsonl').read_text()

  def refuse(token):
    raise AssertionError(f'{token} is no JSON')

  lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
  train = [line for line in lines if 'train/loss' in line]
  assert [line['step'] for line in train] == list(range(1, len(numbers) + 1))
  assert [line['train/loss'] is None for line in train] == [number is None for number in numbers]
  assert train[-1]['train/skipped'] == skipped
  for step in manifest.steps(run_lib.Run(path).checkpoints):
    state = runs.saved_state(path, step)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def _interrupt(config, path, *, stops=(), crashes=()):
  """Runs to the end, and again after each stop or crash once the metrics of a step were read."""
  for step, action in [*((s, 'stop') for s in stops), *((s, 'crash') for s in crashes)]:

    def act(action=action):
      if action == 'crash':
        raise RuntimeError('power cut')
      signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
      runs.at_step(patch, step, act)
      with pytest.raises((errors.Stopped, RuntimeError)):
        runs.run(config, path)
  return runs.run(config, path)


@pytest.mark.parametrize('stops', [(), (1, 3), (2,)], ids=str)
def test_a_bad_batch_was_never_seen(config, bad, tmp_path, stops, capsys):
  bad.nan.update({2, 4})
  path = _interrupt(config, tmp_path / 'run', stops=stops)
  _check(config, path, [0, 1, None, 3, None, 5], skipped=2)
  assert capsys.readouterr().out.count('step 3 changes nothing') >= 1


@pytest.mark.parametrize(
  ('stops', 'crashes'),
  [((), ()), ((1,), ()), ((2,), ()), ((3, 4), ()), ((), (5,)), ((4,), (6,))],
  ids=str,
)
def test_after_bad_steps_in_a_row_a_run_goes_back_and_on_behind_them(
  config, bad, tmp_path, stops, crashes
):
  bad.nan.update({3, 4})
  path = _interrupt(config, tmp_path / 'run', stops=stops, crashes=crashes)
  _check(config, path, [0, 1, 5, 6, 7, 8])
  assert manifest.steps(path / 'checkpoints') == [4, 6]
  runs.assert_trees_equal(runs.saved_state(path, 4), _by_hand(config, [0, 1, 5, 6]))


def test_nothing_of_bad_steps_is_in_an_average(config, bad, tmp_path):
  bad.nan.update({1, 4, 5})
  path = _interrupt(_averaged(config), tmp_path / 'run', stops=(2,), crashes=(5,))
  _check(_averaged(config), path, [0, None, 2, 3, 6, 7], skipped=1)


def test_nothing_is_saved_among_bad_steps_that_would_displace_what_to_go_back_to(
  config, bad, tmp_path
):
  bad.nan.update({3, 4, 5})
  changes = {'max_bad_steps': 3, 'checkpoint_every': 1, 'keep_checkpoints': 1}
  config = runs.change(config, **{f'train__{key}': value for key, value in changes.items()})
  _check(config, runs.run(config, tmp_path / 'run'), [0, 1, 2, 6, 7, 8])


@pytest.mark.parametrize('stops', [(), (5,)], ids=str)
def test_runs_that_are_stopped_keep_what_to_go_back_to(config, bad, tmp_path, stops):
  bad.nan.update({6, 7})
  changes = {'steps': 8, 'checkpoint_every': 4, 'keep_checkpoints': 1}
  config = runs.change(config, **{f'train__{key}': value for key, value in changes.items()})
  path = _interrupt(config, tmp_path / 'run', stops=stops)
  _check(config, path, [0, 1, 2, 3, 8, 9, 10, 11])
  assert manifest.steps(path / 'checkpoints') == [8]


def test_a_run_goes_back_further_if_what_it_would_go_back_to_is_damaged(
  config, bad, tmp_path, monkeypatch, capsys
):
  bad.nan.update({5, 6})
  config, path = runs.change(config, train__steps=8), tmp_path / 'run'

  def damage() -> None:  # before the run goes back
    while not (path / 'checkpoints' / '4').exists():
      time.sleep(0.01)
    damaged = next((path / 'checkpoints' / '4').rglob('d/*'))
    damaged.write_bytes(damaged.read_bytes()[:-1])

  runs.at_step(monkeypatch, 6, damage)
  _check(config, runs.run(config, path), [0, 1, 7, 8, 9, 10, 11, 12])
  assert '4.damaged' in capsys.readouterr().out


@pytest.mark.parametrize('stops', [(), (1,), (2, 3)], ids=str)
def test_a_run_without_a_checkpoint_goes_back_to_its_initial_state(config, bad, tmp_path, stops):
  config = runs.change(config, train__checkpoint_every=100)
  bad.nan.update({2, 3, 5})
  path = _interrupt(config, tmp_path / 'run', stops=stops)
  _check(config, path, [4, None, 6, 7, 8, 9], skipped=1)


def test_the_initial_state_may_be_a_model_that_was_trained_before(config, bad, tmp_path):
  base = runs.run(runs.change(config, train__steps=1), tmp_path / 'base')
  changes = {'init_from': str(base), 'train__checkpoint_every': 100}
  config = runs.change(config, **changes)
  bad.nan.update({2, 3})
  unbroken = runs.run(config, tmp_path / 'unbroken')
  runs.assert_same(_interrupt(config, tmp_path / 'run', stops=(2,)), unbroken)
  other = runs.run(runs.change(config, init_from=''), tmp_path / 'other')
  assert runs.lines(other) != runs.lines(unbroken)


def test_a_run_that_fails_again_says_where_and_does_so_whenever_it_is_run(config, bad, tmp_path):
  bad.nan.update({3, 4, 6, 7})
  found = [raised.user_error(runs.run, config, tmp_path / 'run') for _ in range(2)]
  assert found[0].key == 'optimizer.learning_rate'
  assert str(found[0]) == str(found[1])
  rows = loader.open_data(config, check=None).train.train_places(np.arange(7 * 16, 8 * 16))[0]
  assert 'at step 5' in found[0].problem and 'batch 7' in found[0].problem
  assert f'{rows[0]}, {rows[1]}' in found[0].problem and config.data.source in found[0].problem
  steps, _ = metrics.column(runs.lines(tmp_path / 'run'), 'train/learning_rate')
  assert steps == [1, 2, 3, 4, 5]


def test_a_run_may_go_back_again_from_a_later_checkpoint(config, bad, tmp_path):
  bad.nan.update({3, 4, 8, 9})
  path = runs.run(runs.change(config, train__steps=7), tmp_path / 'run')
  _check(config, path, [0, 1, 5, 6, 10, 11, 12])


def test_the_window_of_losses_is_documented():
  fields = {field.name: field for field in dataclasses.fields(config_lib.TrainConfig)}
  assert f'the last {recovery.WINDOW} ' in fields['spike_zscore'].metadata['doc']


@pytest.mark.parametrize('stops', [(), (2,), (4,)], ids=str)
@pytest.mark.parametrize('zscore', [0.0, 6.0])
def test_a_loss_that_leaps_is_left_out_if_that_is_asked_for(
  config, bad, tmp_path, monkeypatch, zscore, stops
):
  monkeypatch.setattr(recovery, 'WINDOW', 3)
  bad.high.add(4)
  path = _interrupt(runs.change(config, train__spike_zscore=zscore), tmp_path / 'run', stops=stops)
  _check(config, path, [0, 1, 2, 3, 5, 6] if zscore else [0, 1, 2, 3, 4, 5])


def test_a_validation_loss_that_is_not_finite_is_never_the_best(
  config, bad, tmp_path, monkeypatch, capsys
):
  losses = iter([math.nan, 2.0, math.inf, math.nan, 3.0, math.nan, math.nan])
  sums = lambda *_: {'loss': np.float32(next(losses)), 'targets': np.int32(1)}  # noqa: E731
  build = program_lib.build

  def with_losses(*args: Any) -> Any:
    program = build(*args)
    return dataclasses.replace(program, eval_step=sums)

  monkeypatch.setattr(program_lib, 'build', with_losses)
  config = runs.change(config, train__eval_every=1, train__eval_batches=1)
  path = runs.run(config, tmp_path / 'run')
  _check(config, path, range(6))
  assert 'not finite' in capsys.readouterr().out
  assert saved_model.open_model(path).step == 1
  scores = manifest.scores(path / 'checkpoints')
  assert scores == {1: 2.0, 4: 3.0, 6: None}
  before = runs.files(path)
  runs.run(config, path)
  assert [runs.lines(path), runs.files(path).keys()] == [runs.lines(path), before.keys()]
  assert 'best val loss 2.0000 at step 1' in capsys.readouterr().out


# Which checkpoint a run goes back to.


@pytest.mark.parametrize(
  ('saved', 'good', 'expected'),
  [
    ([], 3, 0),
    ([10, 20], 25, 20),
    ([10, 20], 19, 10),
    ([10, 20, 23, 25], 25, 20),  # it was stopped at 23 and 25
    ([10, 14], 19, 14),  # the best then
    ([14, 27], 29, 27),  # 20 is gone
    ([4], 7, 0),
    ([3], 7, 3),  # the best then
  ],
)
def test_a_run_goes_back_to_what_is_saved_whether_it_was_stopped_or_not(saved, good, expected):
  lines = [{'step': step, 'val/loss': loss} for step, loss in {0: 9.0, 3: 2.0, 14: 1.0}.items()]
  assert recovery.targets(lines, saved, good, 10)[0] == expected


def test_a_new_row_of_bad_steps_begins_where_a_run_goes_back_to(tmp_path):
  (tmp_path / '4').mkdir()
  then = recovery.Recovery(offset=3, skipped=2, in_a_row=1, losses=[0.5])
  manifest.write(tmp_path / '4', manifest.Manifest(4, None, {}, dataclasses.asdict(then), {}))
  now = recovery.Recovery(offset=3, skipped=9, in_a_row=7)
  trouble = recovery.Trouble('key', 'problem', step=11, good=4)
  after = now.after(trouble, tmp_path / '4')
  assert after == recovery.Recovery(offset=3 + 11 - 4, skipped=2, losses=[0.5])
  assert after.after(trouble, tmp_path / '4') is None
