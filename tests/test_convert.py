"""The command exports a model whole, prints its size, and overwrites nothing."""

import dataclasses

import pytest

import gpt_jax
from gpt_jax import convert
from gpt_jax.weights import saved_model
from tests import raised, random_params
from tests.weights import hub_server, saved


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model') / 'run'
  return saved.save_run(folder, saved.MODEL, {1: random_params.make(saved.MODEL)}).path


def _convert(*args):
  values = convert.define_flags()
  values(['convert', *args])
  convert.main(values)


def test_the_model_is_exported_with_its_tokenizer_and_its_size_is_printed(run, tmp_path, capsys):
  output = tmp_path / 'new' / 'folder'
  _convert(f'--model={run}', f'--output={output}')
  size = sum(path.stat().st_size for path in output.iterdir())
  assert f'wrote {output}: {size / 1e6:,.1f} MB' in capsys.readouterr().out
  before, after = saved_model.open_model(run), saved_model.open_model(output)
  assert after.tokenizer is not None and after.tokenizer.hash == saved.BYTE.hash
  abstract = saved.on_one_device(after.config)
  saved.assert_equal(after.load(abstract), before.load(abstract))


def test_what_is_pushed_has_a_card_with_the_config_and_the_best_loss(run, tmp_path, capsys):
  (run / 'metrics.jsonl').write_text('{"step": 1, "val/loss": 1.25}\n')
  (run / 'loss.png').write_bytes(b'curve')
  with hub_server.serving(tmp_path / 'cache') as hub:
    _convert(f'--model={run}', f'--output={tmp_path / "mine"}', '--push=me/mine')
    assert f'{hub.address}/me/mine' in capsys.readouterr().out
    assert gpt_jax.load('hf:me/mine').config.n_embd == saved.MODEL.n_embd
  ((files,),) = (revisions.values() for revisions in hub.repositories.values())
  assert set(files) == {path.name for path in (tmp_path / 'mine').iterdir()}
  assert files['loss.png'] == b'curve'
  card = files['README.md'].decode()
  assert card.startswith('---\n') and '1.2500, at step 1' in card and "load('hf:me/mine')" in card
  assert f'"model.n_embd": {saved.MODEL.n_embd}' in card


def test_a_push_that_the_hub_refuses_is_a_user_error(run, tmp_path):
  with hub_server.serving(tmp_path / 'cache') as hub:
    hub.status = 401
    error = raised.user_error(
      _convert, f'--model={run}', f'--output={tmp_path / "mine"}', '--push=me/mine'
    )
  assert error.key == 'me/mine' and 'cannot be uploaded' in error.problem and 'hf auth' in error.fix


def test_an_output_that_exists_or_cannot_be_written_is_refused(run, tmp_path):
  folder, file = tmp_path / 'folder', tmp_path / 'file'
  folder.mkdir()
  file.write_text('mine')
  for output in (folder, file):
    error = raised.user_error(_convert, '--model=not read', f'--output={output}')
    assert error.key == 'output' and str(output) in str(error)
  with pytest.raises(OSError, match=str(file / 'new')):
    _convert(f'--model={run}', f'--output={file / "new"}')
  assert not list(folder.iterdir()) and file.read_text() == 'mine'
  assert [each.key for each in raised.user_error(_convert).all] == ['model', 'output']


@pytest.mark.parametrize(
  ('kind', 'more'),
  [
    ('encoder', {'task': 'classify', 'data.label_field': 'label'}),
    ('encoder_decoder', {'task': 'translate', 'data.template': '{prompt}'}),
  ],
)
def test_a_model_that_is_no_gpt_is_refused(kind, more, tmp_path):
  model = dataclasses.replace(saved.MODEL, kind=kind)
  params = {1: random_params.make(model)}
  run = saved.save_run(tmp_path / 'run', model, params, more=more).path
  error = raised.user_error(_convert, f'--model={run}', f'--output={tmp_path / "new"}')
  assert error.key == 'model' and f'kind={kind}' in str(error)
  assert not (tmp_path / 'new').exists()
