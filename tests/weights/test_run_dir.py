"""A damaged file of a run is named; hashes bind checkpoints to config and tokenizer."""

import dataclasses
import json
from typing import Any

import pytest

from gpt_jax import atomic, json_files, knobs
from gpt_jax import config as config_lib
from gpt_jax.weights import run_dir
from tests import raised
from tests.weights import saved


@pytest.mark.parametrize(
  'content', [None, b'', b'{"a": ', b'[]', b'7', b'{"a": "\xff"}', b'[' * 10**5]
)
def test_json_that_is_missing_or_damaged_is_a_user_error_at_its_path(tmp_path, content):
  path = tmp_path / 'values.json'
  if content is not None:
    path.write_bytes(content)
  for given in (path, tmp_path, tmp_path / ('x' * 300)):
    assert raised.user_error(json_files.read, given).key == str(given)


def test_config_and_tokenizer_come_back_as_they_were_written(tmp_path):
  run = run_dir.RunDir(tmp_path)
  data = config_lib.DataConfig(sentence_end='。')
  config = config_lib.Config(model=saved.MODEL, data=data)
  atomic.write_json(run.config, dataclasses.asdict(config))
  atomic.write_json(run.tokenizer, saved.BYTE.to_dict())
  assert run.read_config() == config
  assert run.read_tokenizer().hash == saved.BYTE.hash
  assert {path.name for path in tmp_path.iterdir()} == {'config.json', 'tokenizer.json'}


@pytest.mark.parametrize(
  ('file', 'content'),
  [
    ('config', {'modle': {'n_layer': 1}}),
    ('config', {'model': 7}),
    ('config', {'train': {'steps': 0, 'seed': -1}}),
    ('tokenizer', {}),
    *(('tokenizer', {'kind': kind, 'json': 7}) for kind in ('nonesuch', 'hf')),
  ],
  ids=str,
)
def test_an_invalid_file_is_named_with_each_problem(tmp_path, file, content):
  run = run_dir.RunDir(tmp_path)
  path = tmp_path / f'{file}.json'
  path.write_text(json.dumps(content))
  error = raised.user_error(run.read_config if file == 'config' else run.read_tokenizer)
  assert {each.key for each in error.all} == {str(path)}


def test_the_identity_is_of_the_keys_that_decide_parameters_and_their_meaning():
  same = {'dropout': 0.1, 'attention': 'cudnn', 'dtype': 'bfloat16', 'remat': True}
  same |= {'remat_keep': 'products'}
  same |= {'freeze_body': True, 'mask_id': 1}
  other: dict[str, Any] = {'n_layer': 3, 'n_head': 4, 'n_embd': 16, 'block_size': 9}
  other |= {'vocab_size': 258, 'pad_vocab_to': 1, 'bias': False, 'tie_embeddings': False}
  other |= {'scan_layers': True, 'lora_rank': 2, 'lora_alpha': 8.0}
  other |= {'kind': 'lstm', 'classes': 'a,b', 'clusters': '9'}
  # Of a classifier and of an LSTM alone.
  more: dict[str, Any] = {'pooling': 'last', 'lstm_width': 9}
  # A new key must be put into one of the three.
  keys = {field.name for field in dataclasses.fields(saved.MODEL)}
  assert same.keys() | other.keys() | more.keys() == keys
  identity = run_dir.identity(saved.MODEL, saved.BYTE)
  assert run_dir.identity(knobs.replace(saved.MODEL, same), saved.BYTE) == identity
  models = [knobs.replace(saved.MODEL, {key: value}) for key, value in other.items()]
  used = {'classes': 'a,b', 'kind': 'lstm'}
  models += [knobs.replace(saved.MODEL, used)]
  models += [knobs.replace(saved.MODEL, {**used, key: value}) for key, value in more.items()]
  found = {run_dir.identity(model, saved.BYTE)['model'] for model in models}
  assert len(found | {identity['model']}) == len(models) + 1


def test_the_identity_is_of_the_tokenizer_and_survives_json():
  model = dataclasses.replace(saved.MODEL, lora_alpha=16)
  identity = run_dir.identity(model, saved.BYTE)
  assert identity == run_dir.identity(dataclasses.replace(model, lora_alpha=16.0), saved.BYTE)
  other = run_dir.identity(model, saved.BOS)
  assert other['model'] == identity['model'] and other['tokenizer'] != identity['tokenizer']
