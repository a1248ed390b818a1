"""The grid of a scaling law: its runs, their interruption, and what is left of them."""

import json
import pathlib
import signal

import pytest

from gpt_jax import cli, errors, scaling
from tests.training import runs

pytestmark = pytest.mark.usefixtures('quick_runs')


def _scale(folder: pathlib.Path, *args: str) -> dict[str, float]:
  """Runs the command, and returns the loss of each run that it prints."""
  config = runs.make_config(folder, model__n_embd=32, train__steps=8, optimizer__warmup_steps=0)
  source = folder / 'sea.py'
  source.write_text(f'from gpt_jax.config import *\ndef get_config():\n  return {config!r}\n')
  values, places = scaling.define_flags(), [f'--config={source}', f'--workdir={folder / "runs"}']
  argv = ['', *places, '--widths=8,16', '--tokens=256,512,1024', *args]
  scaling.main(*cli.parse(values, argv, takes_config=True))
  found = json.loads((folder / 'runs' / 'scaling.json').read_text())
  return {f'{run["width"]} {run["tokens"]}': run['loss'] for run in found['runs']}


def test_an_interrupted_grid_goes_on_where_it_was_and_trains_nothing_twice(
  tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
  with monkeypatch.context() as patch:
    runs.at_step(patch, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(errors.Stopped):
      _scale(tmp_path)
  assert len(capsys.readouterr().out.splitlines()) < 8
  found = _scale(tmp_path, '--flops=1e9')
  printed = capsys.readouterr().out
  assert 'for 1e+09 FLOPs: width' in printed and 'for the config: loss' in printed
  assert len(found) == 7 and (tmp_path / 'runs' / 'scaling.png').stat().st_size > 10_000
  before = runs.files(tmp_path / 'runs')
  monkeypatch.setattr('gpt_jax.training.loop.Loop.train', None)  # nothing is trained again
  assert _scale(tmp_path, '--flops=1e9') == found
  assert {k.name for k, v in runs.files(tmp_path / 'runs').items() if before[k] != v} <= {'log.txt'}


def test_a_resized_config_keeps_its_heads_rate_and_schedule(tmp_path: pathlib.Path) -> None:
  config = runs.make_config(tmp_path, train__steps=40, model__n_embd=64, model__n_head=4)
  tokens = 40 * 16 * 8
  same = scaling.resized(config, 64, tokens)
  assert same.model == config.model and same.optimizer == config.optimizer
  assert same.train.steps == 40
  narrow = scaling.resized(config, 16, tokens / 4)
  assert narrow.model.n_head == 1 and narrow.train.steps == 10
  assert narrow.optimizer.learning_rate == 2 * config.optimizer.learning_rate
  assert scaling.resized(config, 48, tokens).model.n_head == 3


def test_sizes_of_other_widths_are_those_of_their_models(tmp_path: pathlib.Path) -> None:
  config = runs.make_config(tmp_path, model__n_layer=2, model__vocab_size=257)
  sizes = scaling._sizes(config.model, 16)
  assert list(sizes) == list(range(16, 129, 4))
  for width in (16, 128):
    wanted = scaling._size(runs.change(config, model__n_embd=width).model)
    assert sizes[width] == pytest.approx(wanted)
