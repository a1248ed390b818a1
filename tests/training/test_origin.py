"""A run may start from the weights of another model, in any form."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from gpt_jax import config as config_lib
from gpt_jax import errors, validation
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import bpe
from gpt_jax.models import gpt
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.parallel import sharding
from gpt_jax.training import checkpoints, loop, metrics, origin, workdir
from gpt_jax.training import step as step_lib
from gpt_jax.weights import huggingface

pytestmark = pytest.mark.usefixtures('compile_once')
_TEXT = 'the sea, the sea and the sand; a wave and then a wave. ' * 40


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  (folder / 'sea.txt').write_text(_TEXT)
  return config_lib.Config(
    model=config_lib.ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, pad_vocab_to=8),
    data=config_lib.DataConfig(
      source=f'text:{folder}/sea.txt', tokenizer='byte', cache_dir=str(folder / 'cache')
    ),
    train=config_lib.TrainConfig(
      steps=30, batch_size=16, log_every=1, eval_every=30, eval_batches=2, checkpoint_every=30
    ),
    optimizer=config_lib.OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
  )


@pytest.fixture(scope='module')
def trained(config, tmp_path_factory):
  """A run, and its model in the form of Hugging Face."""
  run = tmp_path_factory.mktemp('trained')
  loop.train(config, workdir.Workdir(run / 'run'))
  model = gpt_jax.load(run / 'run')
  huggingface.write_model(run / 'exported', model.config, model.params, model.tokenizer)
  return run


def changed(config, **changes):
  other = validation.from_dict(config_lib.to_dict(config))
  for key, value in changes.items():
    section, _, name = key.rpartition('__')
    setattr(getattr(other, section) if section else other, name, value)
  return other


def val_losses(directory):
  lines = metrics.read(pathlib.Path(directory) / 'metrics.jsonl')
  return [line['val/loss'] for line in lines if 'val/loss' in line]


@pytest.mark.parametrize('form', ['run/checkpoints/30', 'exported'])
def test_a_run_starts_where_the_other_ended_and_goes_on_from_there(config, trained, form, tmp_path):
  before = val_losses(trained / 'run')
  other = changed(config, init_from=str(trained / form))
  loop.train(other, workdir.Workdir(tmp_path / 'fine'))
  after = val_losses(tmp_path / 'fine')
  assert after[0] == pytest.approx(before[-1], rel=1e-5)
  assert after[-1] < 0.9 * after[0] < 0.9 * before[0]


@pytest.mark.parametrize('form', ['run', 'exported'])
@pytest.mark.parametrize('changes', [{'block_size': 8}, {'pad_vocab_to': 128}, {'pad_vocab_to': 1}])
def test_the_context_may_be_shorter_and_the_padding_another(trained, form, changes):
  found = origin.open_origin(trained / form)
  model = dataclasses.replace(found.config, **changes)
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  params = found.params(gpt.abstract_params(model, device))
  tokens_BL = np.arange(8)[None]
  logits_BLV, _ = gpt.GPT(dataclasses.replace(model, attention='xla')).apply(
    {'params': params}, tokens_BL
  )
  wanted_BLV = gpt_jax.load(trained / form).logits(tokens_BL)
  np.testing.assert_allclose(logits_BLV[..., :257], wanted_BLV, atol=1e-6)


def on_a_mesh(config, found):
  """The parameters of `found`, the vocabulary padded to 272, cut along two axes of a mesh."""
  other = changed(config, mesh__fsdp=2, mesh__tensor=2)
  other.model = dataclasses.replace(found.config, pad_vocab_to=16)
  abstract = gpt.abstract_params(other.model)
  shardings = sharding.tree_shardings(mesh_lib.make_mesh(other), abstract)
  params = found.params(
    jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings
    )
  )
  assert jax.tree.map(lambda x: x.sharding, params) == shardings
  return params


@pytest.mark.parametrize('form', ['run', 'exported'])
def test_weights_go_to_the_shards_of_a_mesh(config, trained, form):
  params = on_a_mesh(config, origin.open_origin(trained / form))
  whole = gpt_jax.load(trained / form).params['wte']['embedding']
  table_VD = np.asarray(params['wte']['embedding'])
  np.testing.assert_array_equal(table_VD[:257], whole[:257])
  assert table_VD.shape[0] == 272 and not table_VD[264:].any()


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'model__n_layer': 3}, ['model.n_layer: 3 must be 2']),
    ({'model__n_embd': 32, 'model__bias': False}, ['model.n_embd: 32', 'model.bias: False']),
    ({'model__block_size': 17}, ['model.block_size: 17 must be at most 16']),
    ({'data__tokenizer': 'char'}, ['data.tokenizer', 'char', 'byte', 'model.vocab_size']),
    ({'init_from': 'nonesuch'}, ['nonesuch has no model']),
  ],
)
@pytest.mark.parametrize('form', ['run', 'exported'])
def test_what_does_not_fit_is_named_with_what_would(
  config, trained, tmp_path, form, changes, words
):
  other = changed(config, **{'init_from': str(trained / form), **changes})
  with pytest.raises(errors.UserError) as e:
    loop.train(other, workdir.Workdir(tmp_path / 'fine'))
  assert all(word in str(e.value) for word in words), e.value
  assert not (tmp_path / 'fine').exists()


def test_layers_that_are_scanned_are_told_from_those_that_are_not(config, trained, tmp_path):
  other = changed(config, init_from=str(trained / 'run'), model__scan_layers=True)
  with pytest.raises(errors.UserError, match='model.scan_layers: True must be False'):
    loop.train(other, workdir.Workdir(tmp_path / 'fine'))
  assert not (tmp_path / 'fine').exists()


def test_published_weights_may_be_scanned(config, trained, tmp_path):
  other = changed(
    config, init_from=str(trained / 'exported'), model__scan_layers=True, train__steps=1
  )
  loop.train(other, workdir.Workdir(tmp_path / 'fine'))
  assert val_losses(tmp_path / 'fine')[0] == pytest.approx(
    val_losses(trained / 'run')[-1], rel=1e-5
  )


def test_a_run_may_start_from_one_with_a_longer_context(config, trained, tmp_path):
  other = changed(config, init_from=str(trained / 'run'), model__block_size=8, train__steps=1)
  loop.train(other, workdir.Workdir(tmp_path / 'fine'))
  assert val_losses(tmp_path / 'fine')[0] < val_losses(trained / 'run')[0] - 1


@pytest.mark.parametrize('form', ['run', 'exported'])
@pytest.mark.parametrize(
  'changes',
  [
    {'n_layer': 1},
    {'n_head': 4},
    {'n_embd': 32},
    {'vocab_size': 256},
    {'bias': False},
    {'tie_embeddings': False},
    {'block_size': 17},
  ],
  ids=str,
)
def test_each_part_of_the_architecture_must_agree(trained, form, changes):
  found = origin.open_origin(trained / form)
  byte = tokenizers.build(config_lib.DataConfig(tokenizer='byte'), {})
  found.check(found.config, byte)
  ((key, value),) = changes.items()
  with pytest.raises(errors.UserError) as e:
    found.check(dataclasses.replace(found.config, **changes), byte)
  (line,) = str(e.value).splitlines()
  assert line.startswith(f'model.{key}: {value} must be ') and str(trained / form) in line


def test_a_tokenizer_of_the_same_kind_with_other_tokens_is_refused(trained):
  found = origin.open_origin(trained / 'run')
  kinds = [
    tokenizers.build(config_lib.DataConfig(tokenizer='byte', special_tokens=special), {})
    for special in ('', 'bos')
  ]
  found.check(found.config, kinds[0])
  with pytest.raises(errors.UserError, match='the byte tokenizer is not that of'):
    found.check(found.config, kinds[1])
  # Without a tokenizer there is nothing that could disagree.
  dataclasses.replace(found, tokenizer=None).check(found.config, kinds[1])


def test_the_merges_beside_weights_of_openai_are_their_tokenizer(tmp_path, vocabulary):
  fixture = pathlib.Path(__file__).parents[1] / 'weights' / 'fixtures' / 'openai_tiny'
  folder = pathlib.Path(shutil.copytree(fixture, tmp_path / 'openai'))
  assert origin.open_origin(folder).tokenizer is None
  (folder / 'vocab.bpe').write_bytes(bpe.find_merges())
  # They are GPT-2's: the tiny model has another number of tokens.
  with pytest.raises(errors.UserError, match=r'openai: the tokenizer has 50,257 tokens, the model'):
    origin.open_origin(folder)


def save_run(config, directory, val_losses, **changes):
  """A run with a checkpoint for each step of `val_losses`; every parameter of it is the step."""
  place, tokenizer = workdir.Workdir(directory), tokenizers.build(config.data, {})
  config = loop.resolve(changed(config, **changes), tokenizer)
  place.start(config, tokenizer, {})
  abstract = gpt.abstract_params(config.model)
  with checkpoints.Checkpoints(place.checkpoints, keep=9) as saved:
    for step, loss in val_losses.items():
      params = jax.tree.map(lambda x, step=step: np.full(x.shape, step, x.dtype), abstract)
      state = step_lib.TrainState(jnp.int32(step), params, {'count': jnp.int32(step)})
      saved.save(state, step=step, val_loss=loss)
  return directory


@pytest.mark.parametrize(
  'val_losses, chosen',
  [
    ({1: 3.0, 2: 2.0, 3: 2.5}, 2),
    ({1: None, 2: None, 3: None}, 3),
    ({1: None, 2: 2.0, 3: None}, 2),
  ],
)
def test_a_run_gives_its_best_checkpoint_and_without_measurement_its_newest(
  config, tmp_path, val_losses, chosen
):
  found = origin.open_origin(save_run(config, tmp_path / 'run', val_losses))
  assert found.step == chosen
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  leaves = jax.tree.leaves(found.params(gpt.abstract_params(found.config, device)))
  assert all(bool((leaf == chosen).all()) for leaf in leaves)
  assert origin.open_origin(tmp_path / 'run' / 'checkpoints' / '1').step == 1


def test_what_a_mesh_cannot_cut_is_padded_before_it_is_cut(config, tmp_path):
  found = origin.open_origin(save_run(config, tmp_path / 'run', {1: 2.0}, model__pad_vocab_to=1))
  table_VD = np.asarray(on_a_mesh(config, found)['wte']['embedding'])
  assert (table_VD[:257] == 1).all() and not table_VD[257:].any()
