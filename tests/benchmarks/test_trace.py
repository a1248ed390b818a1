"""The time of a profile is divided among the parts of a model, none of it twice."""

import types

import pytest

from gpt_jax.benchmarks import trace

_PARTS = {'a': 'attention', 'm': 'mlp'}


def _event(start, end, operation, key=None):
  stats = [('hlo_op', operation), ('_p', key)]
  return types.SimpleNamespace(name=operation, start_ns=start, end_ns=end, stats=stats)


def _profile(*events, plane='/host:CPU', others=()):
  lines = [types.SimpleNamespace(events=[event]) for event in events]
  planes = [types.SimpleNamespace(name=plane, lines=lines), *others]
  return types.SimpleNamespace(planes=planes)


@pytest.mark.parametrize(
  ('events', 'expected'),
  [
    ([(0, 4, 'a'), (4, 10, 'm')], {'attention': 4, 'mlp': 6}),
    ([(4, 10, 'm'), (0, 2, 'a')], {'attention': 2, 'mlp': 6, 'nothing': 2}),
    ([(0, 10, 'a'), (4, 8, 'm')], {'attention': 8, 'mlp': 2}),
    ([(0, 9, 'a'), (0, 9, 'a'), (0, 9, 'm')], {'attention': 6, 'mlp': 3}),
    ([(0, 9, 'a'), (2, 20, 'unknown')], {'attention': 9}),
  ],
)
def test_operations_at_the_same_time_share_it(events, expected):
  spent = trace._shares(_profile(*(_event(*event) for event in events)), _PARTS)
  assert +spent == pytest.approx(expected)


def test_an_operation_ends_when_all_its_threads_have():
  end = types.SimpleNamespace(name='end: a', start_ns=9, end_ns=10, stats=[('_c', 7)])
  assert +trace._shares(_profile(_event(0, 2, 'a', 7), end), _PARTS) == {'attention': 10}
  assert +trace._shares(_profile(_event(0, 2, 'a', 8), end), _PARTS) == {'attention': 2}


def test_where_there_is_a_device_the_host_does_not_count():
  host = _profile(_event(0, 99, 'm')).planes[0]
  profile = _profile(_event(0, 2, 'a'), plane='/device:GPU:0', others=[host])
  assert +trace._shares(profile, _PARTS) == {'attention': 2}


@pytest.mark.parametrize(
  ('scope', 'part'),
  [
    ('jit(train_step)/jvp(GPT.hidden)/h_0/attn/c_attn/dot_general', 'attention, forward'),
    ('jit(train_step)/transpose(jvp(GPT.hidden))/h_0/mlp/mul', 'mlp, backward'),
    ('jit(train_step)/jvp(GPT.hidden)/h/while/body/ln_1/add', 'layer norms, forward'),
    ('jit(train_step)/transpose(jvp(GPT.hidden))/wte/scatter-add', 'embedding, backward'),
    ('jit(train_step)/jvp(LSTM.loss)/dot_general', 'output and loss, forward'),
    ('jit(train_step)/jvp(LSTM.hidden)/h_0/while/body/cell/dot_general', 'lstm, forward'),
    ('jit(train_step)/optimizer/add', 'optimizer'),
    ('jit(train_step)/add', 'other'),
    ('', 'other'),
  ],
)
def test_the_part_of_a_scope(scope, part):
  metadata = f'metadata={{op_name="{scope}" stack_frame_id=7}}'
  assert trace._part(f'  %add.1 = f32[8]{{0}} add(%x, %y), {metadata}') == part
  assert trace._part(f'  %r.1 = f32[8]{{0}} all-reduce(%x), {metadata}') == 'exchange of devices'
