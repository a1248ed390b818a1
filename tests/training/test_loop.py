"""Runs as a whole: what they leave behind, and that stopping them changes nothing."""

import collections.abc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import errors, loading, stopping, validation
from gpt_jax.training import checkpoints, console, feed, loop, metrics, program, workdir

REPOSITORY = pathlib.Path(__file__).parents[2]
STEPS = 12


pytestmark = pytest.mark.usefixtures('compile_once')


@pytest.fixture(scope='module')
def text(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A text whose characters depend on each other, so that there is something to learn."""
  path = tmp_path_factory.mktemp('text') / 'sea.txt'
  path.write_text('the sea, the sea and the sand; a wave and then a wave. ' * 60)
  return path


@pytest.fixture(scope='module')
def config(text: pathlib.Path) -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.1, pad_vocab_to=8
    ),
    data=config_lib.DataConfig(
      source=f'text:{text}', tokenizer='char', cache_dir=str(text.parent / 'cache')
    ),
    train=config_lib.TrainConfig(
      steps=STEPS,
      batch_size=16,
      gradient_accumulation=2,
      log_every=1,
      eval_every=4,
      eval_batches=2,
      checkpoint_every=5,
      keep_checkpoints=2,
    ),
    optimizer=config_lib.OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
  )


@pytest.fixture(scope='module')
def unbroken(
  config: config_lib.Config, tmp_path_factory: pytest.TempPathFactory
) -> workdir.Workdir:
  """A run from start to end in one go."""
  directory = workdir.Workdir(tmp_path_factory.mktemp('unbroken') / 'run')
  loop.train(config, directory)
  return directory


def changed(config: config_lib.Config) -> config_lib.Config:
  """A copy of `config` that a test may change."""
  return validation.from_dict(config_lib.to_dict(config))


def final_state(config: config_lib.Config, directory: workdir.Workdir) -> dict[str, np.ndarray]:
  """Every array of the last checkpoint, by path."""
  abstract = program.build(directory.read_config()).state
  with checkpoints.Checkpoints(directory.checkpoints, keep=2, read_only=True) as saved:
    assert saved.steps()[-1] == config.train.steps
    state = saved.restore(config.train.steps, abstract)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def lines(directory: workdir.Workdir) -> list[dict[str, float]]:
  """The metrics without what depends on the clock."""
  clocks = ('time', 'perf/tokens_per_second')
  return [
    {key: value for key, value in line.items() if key not in clocks}
    for line in metrics.read(directory.metrics)
  ]


def assert_same_run(config: config_lib.Config, a: workdir.Workdir, b: workdir.Workdir) -> None:
  states = final_state(config, a), final_state(config, b)
  assert states[0].keys() == states[1].keys()
  for path, value in states[0].items():
    np.testing.assert_array_equal(value, states[1][path], err_msg=path)
  assert lines(a) == lines(b)


def files(directory: workdir.Workdir) -> dict[pathlib.Path, bytes]:
  return {path: path.read_bytes() for path in directory.path.rglob('*') if path.is_file()}


def at_step(
  monkeypatch: pytest.MonkeyPatch, step: int, action: collections.abc.Callable[[], None]
) -> None:
  """Calls `action` when the loop has read the metrics of `step`."""
  original = console.Console.step

  def spy(self: console.Console, current: int, loss: float) -> None:
    original(self, current, loss)
    if current == step:
      action()

  monkeypatch.setattr(console.Console, 'step', spy)


def test_a_run_leaves_what_the_contract_says(unbroken: workdir.Workdir) -> None:
  assert {path.name for path in unbroken.path.iterdir()} == {
    'config.json',
    'tokenizer.json',
    'text.json',
    'metrics.jsonl',
    'checkpoints',
    'loss.png',
  }
  written = metrics.read(unbroken.metrics)
  train = [line for line in written if 'train/loss' in line]
  assert [line['step'] for line in train] == list(range(1, STEPS + 1))
  keys = {'train/grad_norm', 'train/learning_rate', 'perf/tokens_per_second', 'time'}
  assert all(line.keys() >= keys for line in train)
  val = [line for line in written if 'val/loss' in line]
  assert [line['step'] for line in val] == [0, 4, 8, 12]
  assert val[-1]['val/loss'] < val[0]['val/loss'] - 0.2, 'nothing was learnt'
  assert val[0]['val/perplexity'] == pytest.approx(np.exp(val[0]['val/loss']))
  assert unbroken.plot.read_bytes().startswith(b'\x89PNG')
  kept = {int(path.name) for path in unbroken.checkpoints.iterdir() if path.name.isdigit()}
  best = min(val[1:], key=lambda line: line['val/loss'])['step']
  assert kept == {10, 12, best}


@pytest.mark.parametrize('step', [3, 5])
def test_a_stopped_and_resumed_run_is_the_unbroken_run_bit_for_bit(
  step: int,
  config: config_lib.Config,
  unbroken: workdir.Workdir,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  directory = workdir.Workdir(tmp_path / 'run')
  number = signal.SIGTERM if step == 3 else signal.SIGINT
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with monkeypatch.context() as patch:
    at_step(patch, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(errors.Stopped, match='stopped at step'):
      loop.train(config, directory)
  after = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  assert after == before, 'the handlers were not put back'
  loop.train(config, directory)
  assert_same_run(config, directory, unbroken)


def test_a_crashed_run_goes_on_from_its_last_checkpoint_bit_for_bit(
  config: config_lib.Config,
  unbroken: workdir.Workdir,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  directory = workdir.Workdir(tmp_path / 'run')

  def crash() -> None:
    raise RuntimeError('power cut')

  with monkeypatch.context() as patch:
    at_step(patch, 7, crash)
    with pytest.raises(RuntimeError, match='power cut'):
      loop.train(config, directory)
  with directory.metrics.open('a') as file:
    file.write('{"step": 9, "train/lo')  # a line that was being written
  loop.train(config, directory)
  assert_same_run(config, directory, unbroken)


def test_a_finished_run_is_left_as_it_is(
  config: config_lib.Config, unbroken: workdir.Workdir
) -> None:
  before = files(unbroken)
  loop.train(config, unbroken)
  assert files(unbroken) == before


def test_a_run_resumes_on_another_mesh(
  config: config_lib.Config,
  unbroken: workdir.Workdir,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
) -> None:
  directory = workdir.Workdir(tmp_path / 'run')
  with monkeypatch.context() as patch:
    at_step(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(errors.Stopped):
      loop.train(config, directory)
  other = changed(config)
  other.mesh = config_lib.MeshConfig(fsdp=2, tensor=2)
  loop.train(other, directory)
  mine, theirs = lines(directory), lines(unbroken)
  assert [line['step'] for line in mine] == [line['step'] for line in theirs]
  for a, b in zip(mine, theirs, strict=True):
    # Float32 sums in another order change no more, over these few steps.
    assert a == pytest.approx(b, rel=1e-4)


def test_another_signal_ends_at_once(
  config: config_lib.Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  def twice() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(stopping, '_ECHO_SECONDS', -1)
    os.kill(os.getpid(), signal.SIGINT)

  at_step(monkeypatch, 2, twice)
  with pytest.raises(KeyboardInterrupt):
    loop.train(config, workdir.Workdir(tmp_path / 'run'))


def test_a_stop_while_text_is_prepared_leaves_nothing(
  config: config_lib.Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  other = changed(config)
  other.data.cache_dir = str(tmp_path / 'cache')
  monkeypatch.setattr(workdir.Workdir, 'check', lambda *_: os.kill(os.getpid(), signal.SIGTERM))
  with pytest.raises(errors.Stopped, match='run the same command again'):
    loop.train(other, workdir.Workdir(tmp_path / 'run'))
  assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_a_diverged_run_says_so_and_saves_no_broken_state(
  config: config_lib.Config, tmp_path: pathlib.Path
) -> None:
  wild = changed(config)
  wild.optimizer.learning_rate = wild.optimizer.min_learning_rate = 1e38
  wild.train.checkpoint_every = 1
  directory = workdir.Workdir(tmp_path / 'run')
  with pytest.raises(errors.UserError, match='diverged.*learning_rate'):
    loop.train(wild, directory)
  written = [line['step'] for line in lines(directory) if 'train/loss' in line]
  assert written == list(range(1, len(written) + 1))
  assert all(np.isfinite(line.get('train/loss', 0.0)) for line in lines(directory))


def test_a_run_that_has_saved_nothing_may_change_its_config(
  config: config_lib.Config, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  directory = workdir.Workdir(tmp_path / 'run')

  def no_memory(*_: object) -> None:
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate')

  with monkeypatch.context() as patch:
    at_step(patch, 2, no_memory)
    with pytest.raises(errors.UserError, match='gradient_accumulation'):
      loop.train(config, directory)
  smaller = changed(config)
  smaller.train.batch_size = 8
  smaller.train.gradient_accumulation = 1
  smaller.train.steps = 1
  loop.train(smaller, directory)
  assert [line['step'] for line in lines(directory)] == [0, 1, 1]


def test_text_that_changed_is_not_mixed_with_the_old(
  config: config_lib.Config, unbroken: workdir.Workdir, text: pathlib.Path
) -> None:
  before, original = files(unbroken), text.read_text()
  try:
    text.write_text(original.replace('v', 'q'))
    with pytest.raises(errors.UserError, match='other text'):
      loop.train(config, unbroken)
    text.write_text(original.replace('the sea', 'sea the'))  # of the same characters
    with pytest.raises(errors.UserError, match='other text'):
      loop.train(config, unbroken)
  finally:
    text.write_text(original)
  assert files(unbroken) == before


@pytest.mark.parametrize('chunks', ['partition', 'packed', 'sentences'])
def test_every_way_of_cutting_trains_and_resumes(
  config: config_lib.Config,
  tmp_path: pathlib.Path,
  monkeypatch: pytest.MonkeyPatch,
  chunks: str,
) -> None:
  """Split by document, with special tokens, and with rows that aren't full."""
  (tmp_path / 'text.jsonl').write_text(
    '\n'.join(json.dumps({'text': 'a b. ' * (i % 7) + 'c d e. '}) for i in range(60))
  )
  other = changed(config)
  other.data = config_lib.DataConfig(
    source=f'jsonl:{tmp_path}/text.jsonl',
    tokenizer='char',
    special_tokens='bos eos pad',
    chunks=chunks,
    split='document',
    val_fraction=0.4,
    min_length=3,
    max_length=9,
    cache_dir=str(tmp_path / 'cache'),
  )
  unbroken, broken = (workdir.Workdir(tmp_path / name) for name in ('unbroken', 'broken'))
  loop.train(other, unbroken)
  losses = [line['val/loss'] for line in lines(unbroken) if 'val/loss' in line]
  assert losses[-1] < 0.95 * losses[0]
  if chunks != 'packed':  # whose rows a model that is loaded doesn't keep apart
    assert losses[-1] == pytest.approx(mean_loss(other, unbroken), rel=1e-5)
  with monkeypatch.context() as patch:
    at_step(patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(errors.Stopped):
      loop.train(other, broken)
  loop.train(other, broken)
  assert_same_run(other, unbroken, broken)


def mean_loss(config: config_lib.Config, directory: workdir.Workdir) -> float:
  """The mean over all targets of an evaluation, of the last checkpoint, computed another way."""
  with stopping.StopRequest() as stop:
    text = feed.cut(directory.read_config(), feed.load(config.data, stop))
  total = config.train.eval_batches * config.train.batch_size
  rows = text.val.val_rows(np.arange(total), total=total)
  model = gpt_jax.load(directory.checkpoints / str(config.train.steps))
  logits_BLV = np.asarray(model.logits(rows.inputs), np.float64)
  losses_BLV = np.log(np.exp(logits_BLV).sum(-1, keepdims=True)) - logits_BLV
  losses_BL = np.take_along_axis(losses_BLV, np.maximum(rows.targets, 0)[..., None], -1)[..., 0]
  return float(losses_BL[rows.targets >= 0].mean())


def test_the_loaded_model_is_the_best_one(unbroken: workdir.Workdir) -> None:
  val = {
    line['step']: line['val/loss']
    for line in lines(unbroken)
    if 'val/loss' in line and line['step']
  }
  loaded = loading.load(unbroken.path)
  assert loaded.step == min(val, key=lambda step: val[step])
  model = gpt_jax.load(unbroken.path / 'checkpoints' / str(STEPS))
  (sample,) = model.generate('the s', max_new_tokens=20, temperature=0)
  assert len(sample.tokens) == 20
  assert sample.text is not None and len(sample.text) == 20


def test_the_process_stops_with_75(config: config_lib.Config, tmp_path: pathlib.Path) -> None:
  """The command as a scheduler sees it."""
  source = tmp_path / 'sea.py'
  source.write_text(
    'from gpt_jax import validation\n'
    'def get_config():\n'
    f'  return validation.from_dict({config_lib.to_dict(config)!r})\n'
  )
  run = tmp_path / 'run'
  command = [sys.executable, '-m', 'gpt_jax.train', f'--config={source}', f'--workdir={run}']
  long = [*command, '--config.train.steps=100000', '--config.train.tensorboard=true']
  pipe = subprocess.PIPE
  with subprocess.Popen(long, cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True) as process:
    deadline = time.monotonic() + 120
    while not any('"step": 8,' in line for line in read_lines(run / 'metrics.jsonl')):
      assert process.poll() is None and time.monotonic() < deadline, 'the run did not get going'
      time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, complaints = process.communicate(timeout=60)
  assert process.returncode == 75, complaints
  assert 'run the same command again' in complaints and 'Traceback' not in complaints
  assert 'a step' in output and 'parameters' in output
  assert list((run / 'tensorboard').glob('events*'))
  saved = [int(path.name) for path in (run / 'checkpoints').iterdir() if path.name.isdigit()]
  assert max(saved) == max(json.loads(line)['step'] for line in read_lines(run / 'metrics.jsonl'))
  other = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
  assert other.returncode == 2
  assert 'train.steps: 100000 there, 12 here' in other.stderr


def read_lines(path: pathlib.Path) -> list[str]:
  return path.read_text().splitlines() if path.exists() else []
