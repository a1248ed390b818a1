"""Knobs are documented, typed and frozen, and everything wrong with a config is found at once."""

import dataclasses
import json
import math
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs, validation
from gpt_jax.generation import settings as settings_lib

_KNOBS = {knob.key: knob for knob in knobs.knobs(config_lib.Config())}
_TYPES: dict[str, Any] = {key: knob.field.type for key, knob in _KNOBS.items()}
_LIMITED = [
  (key, limit, words)
  for key, knob in _KNOBS.items()
  for limit, words, _ in knob.field.metadata['limits']
]
_CONTRACT = """
  model.n_layer model.n_head model.n_embd model.block_size model.vocab_size model.dropout model.bias
  data.source data.tokenizer data.seed train.steps train.batch_size train.gradient_accumulation
  train.seed train.log_every train.eval_every train.eval_batches train.checkpoint_every
  optimizer.learning_rate optimizer.min_learning_rate optimizer.warmup_steps optimizer.schedule
  optimizer.weight_decay optimizer.b1 optimizer.b2 optimizer.clip mesh.data mesh.fsdp mesh.tensor
  init_from
"""


def _with(values):
  """Returns a default config with these values by dotted key."""
  return knobs.replace(config_lib.Config(), values)


def _problems_of(key, config):
  return [error.problem for error in validation.problems(config) if error.key == key]


def test_the_keys_of_the_contract_exist():
  assert set(_CONTRACT.split()) <= set(_KNOBS)


@pytest.mark.parametrize('key', _KNOBS)
def test_each_knob_has_a_line_of_documentation_and_a_plain_type(key):
  knob = _KNOBS[key]
  doc = knob.field.metadata['doc']
  assert doc and '\n' not in doc and doc[0].isupper() and doc.endswith('.')
  assert type(knob.value) is knob.field.type and knob.field.type in (int, float, bool, str)


def test_the_defaults_are_valid_and_frozen():
  config = config_lib.Config()
  assert validation.problems(config) == []
  for owner in (config, config.model, settings_lib.Settings()):
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(owner, dataclasses.fields(owner)[0].name, 1)


def test_replacing_a_value_leaves_the_original():
  config = config_lib.Config()
  other = knobs.replace(config, {'model.n_layer': 3, 'init_from': 'x'})
  assert (other.model.n_layer, other.init_from, config.model.n_layer) == (3, 'x', 12)
  assert other.data is config.data
  with pytest.raises(TypeError):
    knobs.replace(config, {'model.n_layers': 3})


@pytest.mark.parametrize(('key', 'limit', 'words'), _LIMITED)
def test_a_value_beyond_a_limit_is_refused_and_the_limit_itself_is_not(key, limit, words):
  sign = -1 if words in ('at least', 'above') else 1
  outside = [limit + sign, limit + sign * 1000]
  if words in ('above', 'below'):
    outside.append(limit)
  else:
    problems = _problems_of(key, _with({key: _TYPES[key](limit)}))
    assert not any(words in problem for problem in problems)
  for value in map(_TYPES[key], outside):
    (problem,) = _problems_of(key, _with({key: value}))
    assert str(value) in problem and str(limit) in problem


@pytest.mark.parametrize('key', [k for k in _KNOBS if _KNOBS[k].field.metadata['choices']])
def test_only_the_choices_are_accepted(key):
  choices = _KNOBS[key].field.metadata['choices']
  (error,) = validation.problems(_with({key: choices[0] + 'x'}))
  assert error.key == key and choices[0] in error.fix


@pytest.mark.parametrize('key', [k for k in _KNOBS if _KNOBS[k].field.type is float])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(key, value):
  assert _problems_of(key, _with({key: value}))


@pytest.mark.parametrize('key', [k for k in _KNOBS if _KNOBS[k].field.type is int])
def test_a_number_that_no_program_counts_to_is_refused(key):
  assert _problems_of(key, _with({key: 10**20}))


def test_text_that_is_not_utf_8_is_refused():
  assert _problems_of('data.source', _with({'data.source': 'text:\udcff'}))


# Values that break a rule between keys, and the key that is at fault; values that keep them.
_LSTM = {'model.kind': 'lstm', 'model.tie_embeddings': False, 'model.n_head': 7}
_MASKED: dict[str, Any] = {'task': 'masked', 'model.kind': 'encoder', 'data.tokenizer': 'char'}
_MASKED |= {'data.special_tokens': 'mask'}
_CLASSIFY = {'task': 'classify', 'data.label_field': 'label'}
_INSTRUCT = {'task': 'instruct', 'data.template': 'Q: {prompt} A: '}
_BROKEN = [
  ({'model.n_embd': 10, 'model.n_head': 4}, 'model.n_embd'),
  ({'train.batch_size': 10, 'train.gradient_accumulation': 4}, 'train.batch_size'),
  (
    {'optimizer.learning_rate': 0.1, 'optimizer.min_learning_rate': 0.2},
    'optimizer.min_learning_rate',
  ),
  ({'optimizer.schedule': 'wsd'}, 'optimizer.decay_steps'),
  ({'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 901}, 'optimizer.decay_steps'),
  (
    {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 9, 'train.steps': 108},
    'optimizer.decay_steps',
  ),
  ({'mesh.data': 0}, 'mesh.data'),
  ({'model.attention': 'cudnn'}, 'model.attention'),
  (
    {'model.attention': 'cudnn', 'model.dtype': 'bfloat16', 'model.dropout': 0.1},
    'model.attention',
  ),
  (
    {'model.attention': 'cudnn', 'model.dtype': 'bfloat16', 'data.chunks': 'packed'},
    'model.attention',
  ),
  ({'model.attention': 'splash', 'model.dropout': 0.1}, 'model.attention'),
  ({'model.attention': 'splash', 'model.block_size': 200}, 'model.attention'),
  ({'data.tokenizer': 'words'}, 'data.tokenizer'),
  ({'data.tokenizer': 'hf:'}, 'data.tokenizer'),
  ({'data.tokenizer': 'byte', 'data.special_tokens': 'unk'}, 'data.special_tokens'),
  ({'data.chunks': 'sentences', 'data.max_length': 10}, 'data.max_length'),
  ({'data.chunks': 'sentences', 'model.block_size': 38}, 'data.max_length'),
  ({'data.chunks': 'sentences', 'data.sentence_end': ' '}, 'data.sentence_end'),
  ({'model.lora_rank': 8}, 'model.lora_rank'),
  ({'model.lora_rank': 13, 'model.n_embd': 12, 'init_from': 'x'}, 'model.lora_rank'),
  ({'model.kind': 'lstm'}, 'model.tie_embeddings'),
  ({**_LSTM, 'model.scan_layers': True}, 'model.scan_layers'),
  ({**_LSTM, 'model.lora_rank': 2, 'init_from': 'x'}, 'model.lora_rank'),
  ({'model.clusters': '9,20'}, 'model.clusters'),
  ({'model.clusters': '20,9', 'data.tokenizer': 'word'}, 'model.clusters'),
  ({'model.clusters': '0,9', 'data.tokenizer': 'word'}, 'model.clusters'),
  ({'model.clusters': '9,x', 'data.tokenizer': 'word'}, 'model.clusters'),
  ({'data.lowercase': True}, 'data.lowercase'),
  ({'data.row_length': 1023}, 'data.row_length'),
  ({'task': 'classify'}, 'data.label_field'),
  ({'task': 'instruct'}, 'data.template'),
  ({'task': 'instruct', 'data.template': 'Q: prompt'}, 'data.template'),
  ({'data.template': '{prompt}'}, 'data.template'),
  ({**_INSTRUCT, 'data.label_field': 'kind'}, 'data.label_field'),
  ({**_INSTRUCT, 'model.attention': 'cudnn', 'model.dtype': 'bfloat16'}, 'model.attention'),
  ({'model.freeze_body': True, 'init_from': 'x'}, 'model.freeze_body'),
  ({**_CLASSIFY, 'model.freeze_body': True}, 'model.freeze_body'),
  ({'model.classes': 'a,b'}, 'model.classes'),
  ({'model.kind': 'encoder'}, 'model.kind'),
  ({**_MASKED, 'model.kind': 'gpt'}, 'model.kind'),
  ({**_MASKED, 'data.special_tokens': 'unk'}, 'data.special_tokens'),
  ({**_MASKED, 'data.tokenizer': 'gpt2', 'data.special_tokens': ''}, 'data.tokenizer'),
  (
    {**_CLASSIFY, 'model.attention': 'cudnn', 'model.dtype': 'bfloat16'},
    'model.attention',
  ),
]
_KEPT = [
  _INSTRUCT,
  {'model.n_embd': 12, 'model.n_head': 4},
  {'train.batch_size': 12, 'train.gradient_accumulation': 4},
  {'train.steps': 10, 'optimizer.warmup_steps': 10},
  {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 900},
  {'optimizer.learning_rate': 0.1, 'optimizer.min_learning_rate': 0.1},
  {'optimizer.learning_rate': 3e-5, 'optimizer.schedule': 'constant'},
  {'optimizer.learning_rate': 1},
  {'mesh.data': 3},
  {'model.attention': 'cudnn', 'model.dtype': 'bfloat16'},
  {'model.attention': 'splash', 'data.chunks': 'packed'},
  {'data.tokenizer': 'gpt2:vocab.bpe'},
  {'data.tokenizer': 'char', 'data.special_tokens': 'bos unk'},
  {'data.chunks': 'sentences', 'model.block_size': 39},
  {'model.lora_rank': 12, 'model.n_embd': 12, 'init_from': 'x'},
  _LSTM,
  {'data.tokenizer': 'word', 'data.lowercase': True, 'model.clusters': '9,20'},
  {'data.row_length': 1024, 'data.chunks': 'packed'},
  {**_CLASSIFY, 'model.freeze_body': True, 'init_from': 'x'},
  {**_CLASSIFY, 'model.classes': 'a,b'},
  {**_CLASSIFY, 'model.kind': 'encoder'},
  _MASKED,
  {'task': 'masked', 'model.kind': 'encoder', 'data.tokenizer': 'hf:x'},
]


@pytest.mark.parametrize(('values', 'key'), _BROKEN)
def test_a_broken_rule_is_reported_beside_an_unrelated_problem(values, key):
  for config in (_with(values), _with({**values, 'train.log_every': 0})):
    assert len(_problems_of(key, config)) == 1
    others = {error.key for error in validation.problems(config)} - {key}
    assert others == ({'train.log_every'} if config.train.log_every == 0 else set())


@pytest.mark.parametrize('values', _KEPT)
def test_values_that_keep_the_rules_are_accepted(values):
  assert validation.problems(_with(values)) == []


_TEXT = st.text('aZ0 é☃"\\\n', max_size=5)
_JUNK = st.one_of(
  st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), _TEXT, st.just([1])
)


@hypothesis.given(values=st.dictionaries(st.sampled_from(list(_KNOBS)), _JUNK, max_size=8))
def test_every_value_of_another_type_is_reported_and_none_crashes(values):
  reported = {error.key for error in validation.problems(_with(values))}
  mistyped = {
    key
    for key, value in values.items()
    if type(value) is not _TYPES[key] and not (type(value) is int and _TYPES[key] is float)
  }
  assert mistyped <= reported <= set(_KNOBS)


@pytest.mark.parametrize(
  ('key', 'nearest'),
  [
    ('model.n_layers', 'model.n_layer'),
    ('modle.n_layer', 'model.n_layer'),
    ('train.n_layer', 'model.n_layer'),
    ('learning_rate', 'optimizer.learning_rate'),
    ('train.batchsize', 'train.batch_size'),
    ('optimizer.lr', 'optimizer.learning_rate'),
    ('optimizer.wd', 'optimizer.weight_decay'),
    ('zzzzqqqq', '--help'),
  ],
)
def test_an_unknown_key_gets_the_nearest(key, nearest):
  with pytest.raises(errors.UserError) as e:
    validation.from_dict({key: 1})
  assert e.value.key == key and nearest in e.value.fix


def _valid(knob):
  """Values that `knob` accepts by itself."""
  if knob.field.metadata['choices']:
    return st.sampled_from(knob.field.metadata['choices'])
  if knob.field.type is bool:
    return st.booleans()
  if knob.field.type is str:
    return _TEXT
  values = st.integers(0, 10**6) if knob.field.type is int else st.floats(0, 1e6)
  limits = knob.field.metadata['limits']
  return values.filter(lambda v: all(holds(v, limit) for limit, _, holds in limits))


@hypothesis.given(
  values=st.fixed_dictionaries({}, optional={key: _valid(knob) for key, knob in _KNOBS.items()})
)
def test_a_config_survives_json(values):
  config = _with(values)
  written = json.loads(json.dumps(dataclasses.asdict(config)))
  if validation.problems(config):
    with pytest.raises(errors.UserError):
      validation.from_dict(written)
  else:
    assert validation.from_dict(written) == config


def test_unknown_keys_and_invalid_values_of_a_file_are_refused_together():
  values = dataclasses.asdict(config_lib.Config())
  values['model']['n_layers'] = 3
  values['trian'] = {}
  values['data'] = 'text'
  with pytest.raises(errors.UserError) as e:
    validation.from_dict(values)
  assert [error.key for error in e.value.all] == ['model.n_layers', 'data', 'trian']
  values = dataclasses.asdict(config_lib.Config())
  values['model']['n_head'] = 0
  values['train']['steps'] = 1.5
  with pytest.raises(errors.UserError) as e:
    validation.from_dict(values)
  assert {error.key for error in e.value.all} == {'model.n_head', 'train.steps'}


@pytest.mark.parametrize(
  ('size', 'to', 'padded'), [(50257, 128, 50304), (128, 128, 128), (129, 128, 256), (1, 1, 1)]
)
def test_the_padded_vocabulary_is_the_next_multiple(size, to, padded):
  model = config_lib.ModelConfig(vocab_size=size, pad_vocab_to=to)
  assert model.padded_vocab_size == padded
