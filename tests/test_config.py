"""Knobs are documented and typed, and everything that is wrong with a config is told at once."""

import json
import math
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import config as config_lib
from gpt_jax import errors, validation

_KNOBS = {knob.key: knob for knob in config_lib.knobs(config_lib.Config())}
_TYPES: dict[str, Any] = {key: knob.field.type for key, knob in _KNOBS.items()}
_LIMITED = [
  (key, limit, words)
  for key, knob in _KNOBS.items()
  for limit, words, _ in knob.field.metadata['limits']
]

# Keys that people and scripts rely on.
_CONTRACT = {
  'model': ['n_layer', 'n_head', 'n_embd', 'block_size', 'vocab_size', 'dropout', 'bias'],
  'data': ['source', 'tokenizer', 'seed'],
  'train': [
    'steps',
    'batch_size',
    'gradient_accumulation',
    'seed',
    'log_every',
    'eval_every',
    'eval_batches',
    'checkpoint_every',
  ],
  'optimizer': [
    'learning_rate',
    'min_learning_rate',
    'warmup_steps',
    'schedule',
    'weight_decay',
    'b1',
    'b2',
    'clip',
  ],
  'mesh': ['data', 'fsdp', 'tensor'],
}


def _with(values):
  """A default config with `values` (dotted key -> value) set."""
  config = config_lib.Config()
  for key, value in values.items():
    section, _, name = key.rpartition('.')
    setattr(getattr(config, section) if section else config, name, value)
  return config


def _lines_on(key, config):
  return [line for line in validation.problems(config) if line.startswith(f'{key}: ')]


def test_the_keys_of_the_contract_exist():
  wanted = {f'{section}.{name}' for section, names in _CONTRACT.items() for name in names}
  assert wanted <= set(_KNOBS)


@pytest.mark.parametrize('key', _KNOBS)
def test_each_knob_has_a_line_of_documentation_and_a_plain_type(key):
  knob = _KNOBS[key]
  doc = knob.field.metadata['doc']
  assert doc and '\n' not in doc and doc[0].isupper() and doc.endswith('.')
  assert knob.field.type in (int, float, bool, str)
  assert type(knob.value) is knob.field.type


def test_the_defaults_are_sound():
  assert validation.problems(config_lib.Config()) == []
  validation.validate(config_lib.Config())


@pytest.mark.parametrize(('key', 'limit', 'words'), _LIMITED)
def test_a_value_beyond_a_limit_is_named_with_the_limit(key, limit, words):
  sign = -1 if words in ('at least', 'above') else 1
  outside = [limit + sign, limit + sign * 1000]
  outside += [limit] if words in ('above', 'below') else []
  for value in outside:
    value = _TYPES[key](value)
    (line,) = _lines_on(key, _with({key: value}))
    assert str(value) in line and f'{words} {limit}' in line


@pytest.mark.parametrize(
  ('key', 'least'), [(key, limit) for key, limit, words in _LIMITED if words == 'at least']
)
def test_the_least_value_is_permitted(key, least):
  lines = _lines_on(key, _with({key: _TYPES[key](least)}))
  assert not [line for line in lines if 'at least' in line]


@pytest.mark.parametrize('key', [k for k in _KNOBS if _KNOBS[k].field.metadata['choices']])
def test_a_choice_that_does_not_exist_is_named_with_those_that_do(key):
  choices = _KNOBS[key].field.metadata['choices']
  (line,) = _lines_on(key, _with({key: 'nonesuch'}))
  assert "'nonesuch'" in line and all(choice in line for choice in choices)
  (line,) = _lines_on(key, _with({key: choices[0] + 'x'}))
  assert f'did you mean {choices[0]}?' in line


@pytest.mark.parametrize('key', _KNOBS)
@pytest.mark.parametrize('value', [7, 0.5, True, 'text', None, [1]], ids=repr)
def test_a_value_of_another_type_is_named_with_the_type_wanted(key, value):
  wanted = _TYPES[key]
  fits = type(value) is wanted or (wanted is float and type(value) is int)
  lines = [line for line in _lines_on(key, _with({key: value})) if ' must be ' + wanted.__name__]
  mistyped = [line for line in lines if line.endswith(f'must be {wanted.__name__}')]
  assert bool(mistyped) != fits
  assert all(repr(value) in line and type(value).__name__ in line for line in mistyped)


@pytest.mark.parametrize('key', [k for k in _KNOBS if _KNOBS[k].field.type is float])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(key, value):
  (line,) = _lines_on(key, _with({key: value}))
  assert str(value) in line and 'finite' in line


def test_every_problem_is_told_at_once():
  wrong = {
    'model.n_layer': 0,
    'model.n_embd': 100,
    'model.n_head': 3,
    'data.tokenizer': 'words',
    'train.batch_size': 10,
    'train.gradient_accumulation': 4,
    'train.tensorboard': 'yes',
    'optimizer.learning_rate': math.nan,
    'optimizer.b2': 1.0,
    'mesh.data': 0,
  }
  with pytest.raises(errors.UserError) as e:
    validation.validate(_with(wrong))
  head, *lines = str(e.value).splitlines()
  assert sorted(line.strip().split(':')[0] for line in lines) == sorted(
    set(wrong) - {'model.n_head', 'train.gradient_accumulation'}
  )
  assert head.startswith(str(len(lines)))


# What breaks a rule between keys: the values, the key that is named, what else the line says.
_BROKEN_RULES = [
  ({'model.n_embd': 10, 'model.n_head': 4}, 'model.n_embd', 'divisible by model.n_head (4)'),
  (
    {'train.batch_size': 10, 'train.gradient_accumulation': 4},
    'train.batch_size',
    'divisible by train.gradient_accumulation (4)',
  ),
  (
    {'optimizer.learning_rate': 0.1, 'optimizer.min_learning_rate': 0.2},
    'optimizer.min_learning_rate',
    'at most optimizer.learning_rate (0.1)',
  ),
  ({'optimizer.schedule': 'wsd'}, 'optimizer.decay_steps', 'from 1 to 900'),
  (
    {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 901},
    'optimizer.decay_steps',
    'from 1 to 900',
  ),
  (
    {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 9, 'train.steps': 108},
    'optimizer.decay_steps',
    'from 1 to 8',
  ),
  ({'mesh.data': 0}, 'mesh.data', '-1'),
  ({'model.attention': 'cudnn'}, 'model.attention', 'model.dtype=bfloat16'),
  (
    {'model.attention': 'cudnn', 'model.dtype': 'bfloat16', 'model.dropout': 0.1},
    'model.attention',
    'model.dropout=0',
  ),
  ({'model.lora_rank': 8}, 'model.lora_rank', 'needs init_from'),
  (
    {'model.lora_rank': 13, 'model.n_embd': 12, 'init_from': 'weights/gpt2'},
    'model.lora_rank',
    'at most model.n_embd (12)',
  ),
]


@pytest.mark.parametrize(('values', 'key', 'allowed'), _BROKEN_RULES)
def test_a_rule_between_keys_is_told_beside_an_unrelated_problem(values, key, allowed):
  unrelated = 'train.log_every'
  for config in (_with(values), _with({**values, unrelated: 0})):
    (line,) = _lines_on(key, config)
    assert allowed in line and str(values.get(key, '')) in line
  assert _lines_on(unrelated, config)


@pytest.mark.parametrize(
  'values',
  [
    {'model.n_embd': 12, 'model.n_head': 4},
    {'train.batch_size': 12, 'train.gradient_accumulation': 4},
    {'train.steps': 10, 'optimizer.warmup_steps': 10},
    {'optimizer.schedule': 'wsd', 'optimizer.decay_steps': 900},
    {'optimizer.learning_rate': 0.1, 'optimizer.min_learning_rate': 0.1},
    {'optimizer.learning_rate': 1},
    {'mesh.data': -1},
    {'mesh.data': 3},
    {'model.attention': 'cudnn', 'model.dtype': 'bfloat16'},
    {'model.lora_rank': 12, 'model.n_embd': 12, 'init_from': 'weights/gpt2'},
    {'model.lora_alpha': 2.5, 'init_from': 'weights/gpt2'},
  ],
)
def test_what_keeps_the_rules_is_accepted(values):
  assert validation.problems(_with(values)) == []


_TEXT = st.text('aZ0 é☃"\\\n', max_size=5)
_JUNK = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-2, 4),
  st.integers(-(2**70), 2**70),
  st.floats(),
  _TEXT,
  st.lists(st.integers(), max_size=2),
)


@hypothesis.settings(deadline=None)
@hypothesis.given(values=st.dictionaries(st.sampled_from(list(_KNOBS)), _JUNK, max_size=8))
def test_no_values_crash_the_check_nor_hide_one_of_another_type(values):
  told = {line.split(':')[0] for line in validation.problems(_with(values))}
  mistyped = {
    key
    for key, value in values.items()
    if type(value) is not _KNOBS[key].field.type
    and not (type(value) is int and _KNOBS[key].field.type is float)
  }
  assert mistyped <= told <= set(_KNOBS)


@pytest.mark.parametrize(
  ('key', 'nearest'),
  [
    ('model.n_layers', 'model.n_layer'),
    ('modle.n_layer', 'model.n_layer'),
    ('train.n_layer', 'model.n_layer'),
    ('learning_rate', 'optimizer.learning_rate'),
    ('train.learning_rate', 'optimizer.learning_rate'),
    ('train.batchsize', 'train.batch_size'),
  ],
)
def test_an_unknown_key_gets_the_nearest(key, nearest):
  assert validation.unknown_key(key).startswith(f'{key}: ')
  assert f'did you mean {nearest}?' in validation.unknown_key(key)


def test_a_key_like_no_other_is_sent_to_the_help():
  assert '--help' in validation.unknown_key('zzzzqqqq')


def _sound(knob):
  """Values that `knob` permits by itself."""
  if knob.field.metadata['choices']:
    return st.sampled_from(knob.field.metadata['choices'])
  if knob.field.type is bool:
    return st.booleans()
  if knob.field.type is str:
    return _TEXT
  values = st.integers(0, 10**6) if knob.field.type is int else st.floats(0, 1e6)
  limits = knob.field.metadata['limits']
  return values.filter(lambda v: all(holds(v, limit) for limit, _, holds in limits))


@hypothesis.settings(deadline=None)
@hypothesis.given(
  values=st.fixed_dictionaries({}, optional={key: _sound(knob) for key, knob in _KNOBS.items()})
)
def test_a_config_survives_json(values):
  config = _with(values)
  written = json.loads(json.dumps(config_lib.to_dict(config)))
  if validation.problems(config):
    with pytest.raises(errors.UserError):
      validation.from_dict(written)
  else:
    assert validation.from_dict(written) == config


def test_unknown_keys_of_a_file_are_refused_together():
  values = config_lib.to_dict(config_lib.Config())
  values['model']['n_layers'] = 3
  values['trian'] = {'steps': 3}
  values['data'] = 'text'
  with pytest.raises(errors.UserError) as e:
    validation.from_dict(values)
  for word in ('model.n_layers: ', 'did you mean model.n_layer?', 'trian: ', 'data: '):
    assert word in str(e.value)


def test_unsound_values_of_a_file_are_refused():
  values = config_lib.to_dict(config_lib.Config())
  values['model']['n_head'] = 0
  values['train']['steps'] = 1.5
  with pytest.raises(errors.UserError, match=r'(?s)model\.n_head: 0.*train\.steps: 1\.5'):
    validation.from_dict(values)


def test_the_padded_vocabulary_is_the_next_multiple():
  sizes = [
    config_lib.ModelConfig(vocab_size=size, pad_vocab_to=to).padded_vocab_size
    for size, to in [(50257, 128), (128, 128), (129, 128), (1, 1)]
  ]
  assert sizes == [50304, 128, 256, 1]
