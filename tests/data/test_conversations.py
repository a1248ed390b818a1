"""Rows of conversations: whole ones, apart from each other, of which only responses are learned."""

import collections
import json
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt_jax import config as config_lib
from gpt_jax import knobs
from gpt_jax.data import loader, sources
from gpt_jax.data.batches import batch, chunks, conversations, stream
from gpt_jax.data.sources import rules, turns
from tests import raised
from tests.data import documents

BOS, EOS, PAD = 7, 8, 9
_FIRST_ID = 100  # ids from here on are text
_LABELS = {name: number for number, name in enumerate(conversations.TURNS)}


@st.composite
def made(draw):
  """Conversations as lists of token ids of their turns, in a split that may cut the outer ones."""
  lengths = st.lists(st.integers(1, 5), min_size=2, max_size=6)
  shapes = draw(st.lists(lengths.filter(lambda of: len(of) % 2 == 0), min_size=1, max_size=8))
  ids = iter(range(_FIRST_ID, 10_000))
  whole = [[[next(ids) for _ in range(length)] for length in shape] for shape in shapes]
  has_bos = draw(st.booleans())
  tokens: list[int] = []
  ends, labels = [], []
  for conversation in whole:
    for i, turn in enumerate(conversation):
      tokens += [BOS] * has_bos + turn + [EOS]
      ends.append(len(tokens))
      labels.append(_LABELS['response' if i % 2 else 'prompt' if i else 'first'])
  bounds = np.stack([[0, *ends[:-1]], ends], 1)
  before = draw(st.integers(0, len(whole[0]) - 1))
  after = draw(st.integers(0, len(whole[-1]) - 1)) if len(whole) > 1 else 0
  chosen = slice(before, len(bounds) - after)
  usable = whole[bool(before) :]
  if after:
    last = whole[-1][: len(whole[-1]) - after]
    usable = [*usable[:-1], last[: len(last) // 2 * 2]]
  split = stream.Split(
    stream.Tokens(tuple(np.split(np.array(tokens, np.uint16), [len(tokens) // 2]))),
    bounds[[0, -1], [0, 1]][None],
    lambda: bounds[chosen],
    lambda: np.array(labels)[chosen],
  )
  return split, [conversation for conversation in usable if conversation], has_bos


def _rows(split, has_bos, *, task, block_size, row_length=0):
  data = config_lib.DataConfig(row_length=row_length)
  chunked = chunks.chunk(
    data,
    split,
    task=task,
    block_size=block_size,
    start_id=BOS if has_bos else EOS,
    end_ids=(),
    pad_id=PAD,
  )
  return chunked, chunked.rows(np.arange(len(chunked)))


def _expected(conversation, has_bos, block_size):
  """Inputs and targets of a conversation, turn by turn; None if nothing of it fits."""
  inputs, targets, fitting = [BOS] * has_bos, [batch.IGNORED] * has_bos, None
  for prompt, response in zip(conversation[::2], conversation[1::2], strict=True):
    inputs = [*inputs, *prompt, *response, EOS]
    targets = [*targets, *[batch.IGNORED] * len(prompt), *response, EOS]
    if len(inputs) <= block_size + 1:
      fitting = (*inputs[:-1], -2, *targets[1:])
  return fitting


@hypothesis.given(made(), st.integers(2, 30), st.integers(0, 20))
def test_each_conversation_is_there_once_and_only_its_responses_are_targets(made, size, more):
  split, whole, has_bos = made
  expected = [_expected(conversation, has_bos, size) for conversation in whole]
  kept = [each for each in expected if each]
  if not kept:
    error = raised.user_error(_rows, split, has_bos, task='instruct', block_size=size)
    assert error.key == 'data.chunks'
    return
  length = size + more
  chunked, rows = _rows(split, has_bos, task='instruct', block_size=size, row_length=length)
  assert rows.inputs.shape == (len(chunked), length)
  seen: collections.Counter[tuple[int, ...]] = collections.Counter()
  for inputs, targets, segments in zip(*rows[:3], strict=True):
    filled = int((segments > 0).sum())
    assert (inputs[filled:] == PAD).all() and (targets[filled:] == batch.IGNORED).all()
    assert sorted(segments[:filled]) == segments[:filled].tolist() and not segments[filled:].any()
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      seen[(*inputs[here].tolist(), -2, *targets[here].tolist())] += 1
  assert seen == collections.Counter(kept)
  cut = sum(
    each is not None and each[-2] != c[-1][-1] for each, c in zip(expected, whole, strict=True)
  )
  assert f'{len(kept)} conversations' in chunked.summary
  longer = f'{cut} are cut at a turn and {expected.count(None)} left out'
  assert (longer in chunked.summary) == (cut + expected.count(None) > 0)


@hypothesis.given(made(), st.integers(2, 12))
def test_a_pair_is_what_an_encoder_reads_and_what_a_decoder_writes(made, size):
  split, whole, has_bos = made
  pairs = [(c[i], [*c[i + 1], EOS]) for c in whole for i in range(0, len(c), 2)]
  fitting = [pair for pair in pairs if max(map(len, pair)) <= size]
  hypothesis.assume(fitting)
  chunked, rows = _rows(split, has_bos, task='translate', block_size=size)
  assert rows.segments is None and rows.sources.shape == (len(fitting), size)
  for (prompt, response), inputs, targets, source in zip(
    fitting, rows.inputs, rows.targets, rows.sources, strict=True
  ):
    assert source.tolist() == prompt + [batch.IGNORED] * (size - len(prompt))
    assert targets.tolist() == response + [batch.IGNORED] * (size - len(response))
    start = BOS if has_bos else EOS
    assert inputs.tolist() == [start, *response[:-1]] + [PAD] * (size - len(response))
  assert ('left out' in chunked.summary) == (len(fitting) < len(pairs))


_CHAT = [
  {'role': 'system', 'content': 'Be short.'},
  {'role': 'user', 'content': 'Hällo?'},
  {'role': 'assistant', 'content': 'Yes.'},
  {'role': 'user', 'content': 'And?'},
  {'role': 'assistant', 'content': 'No.'},
]


def _config(folder, lines, **values):
  path = folder / 'talk.jsonl'
  path.write_text('\n'.join(json.dumps(line) for line in lines))
  defaults = {
    'task': 'instruct',
    'model.block_size': 64,
    'data.source': f'jsonl:{path}',
    'data.tokenizer': 'byte',
    'data.template': 'Q: {prompt}\nA: ',
    'data.split': 'document',
    'data.val_fraction': 0.3,
    'data.cache_dir': str(folder / 'cache'),
    'data.processes': 1,
  }
  return knobs.replace(config_lib.Config(), {**defaults, **values})


def _open(config):
  return loader.open_data(config, check=None)


def _segments(dataset):
  """The inputs and the last target of each conversation."""
  for chunked in dataset.chunks:
    for inputs, targets, segments in zip(*chunked.rows(np.arange(len(chunked)))[:3], strict=True):
      for segment in range(1, segments.max() + 1):
        here = segments == segment
        yield [*inputs[here].tolist(), targets[here][-1]]


@pytest.mark.parametrize('special_tokens', ['', 'bos'])
def test_a_row_is_what_is_shown_to_a_model_that_answers(tmp_path, special_tokens):
  lines = [
    {'messages': [*_CHAT[:1], {'role': 'user', 'content': f'{i}?'}, *_CHAT[2:]]} for i in range(20)
  ]
  data = _open(_config(tmp_path, lines, **{'data.special_tokens': special_tokens}))
  found = [*_segments(data.train), *_segments(data.val)]
  shown = [
    [*turns.encode(data.tokenizer, 'Q: {prompt}\nA: ', parts), *b'No.', data.tokenizer.eos_id]
    for parts in ([f'Be short.\n\n{i}?', 'Yes.', 'And?'] for i in range(20))
  ]
  assert sorted(found) == sorted(shown)
  assert data.tokenizer.decode(shown[0]) == 'Q: Be short.\n\n0?\nA: Yes.Q: And?\nA: No.'


def test_both_forms_of_json_give_the_same_rows(tmp_path):
  alpaca = [
    {'instruction': f'Add {i}.', 'input': '' if i % 2 else 'To 1.', 'output': f'{i + 1}'}
    for i in range(20)
  ]
  chat = [
    {
      'messages': [
        {'role': 'user', 'content': f'Add {i}.' + ('' if i % 2 else '\n\nTo 1.')},
        {'role': 'assistant', 'content': f'{i + 1}'},
      ]
    }
    for i in range(20)
  ]
  one, other = (_open(_config(tmp_path, lines)).train for lines in (alpaca, chat))
  rows = one.train_rows(np.arange(9)), other.train_rows(np.arange(9))
  for first, second in zip(*rows, strict=True):
    np.testing.assert_array_equal(first, second)


def test_a_conversation_is_on_one_side_of_a_split(tmp_path):
  lines = [
    {
      'messages': [
        {'role': role, 'content': f'{i % 25} {turn}'}
        for turn, role in enumerate(['user', 'assistant'] * 2)
      ]
    }
    for i in range(50)
  ]
  for split in ('document', 'position'):
    data = _open(_config(tmp_path, lines, **{'data.split': split}))
    texts = [
      {data.tokenizer.decode(ids) for ids in _segments(dataset)}
      for dataset in (data.train, data.val)
    ]
    counts = [text.count('Q: ') for text in [*texts[0], *texts[1]]]
    assert counts.count(2) >= len(counts) - 1, 'more than one conversation is torn'
    if split == 'document':
      assert len(texts[0]) + len(texts[1]) == 25 and not texts[0] & texts[1]


@pytest.mark.parametrize(
  'line',
  [
    {'instruction': 'Add.'},
    {'instruction': 'Add.', 'output': ' '},
    {'instruction': '', 'output': '1'},
    {'output': '1'},
    {'messages': []},
    {'messages': {'role': 'user'}},
    {'messages': ['Hello']},
    {'messages': _CHAT[:2]},
    {'messages': _CHAT[:4]},
    {'messages': _CHAT[2:3]},
    {'messages': [_CHAT[1], _CHAT[1]]},
    {'messages': [*_CHAT[1:3], _CHAT[0]]},
    {'messages': [{'role': 'tool', 'content': 'x'}, *_CHAT[1:3]]},
    {'messages': [_CHAT[1], {'role': 'assistant'}]},
  ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path, line):
  config = _config(tmp_path, [{'messages': _CHAT}, line])
  assert raised.user_error(_open, config).key == f'{tmp_path}/talk.jsonl, line 2'


@pytest.mark.parametrize(
  ('key', 'values'),
  [
    ('data.template', {'data.source': 'builtin:python-reference'}),
    ('data.template', {'data.source': 'tokens:x.bin'}),
    ('data.special_tokens', {'data.tokenizer': 'char'}),
    ('data.template', {'data.template': '', 'data.source': 'builtin:dates', 'task': 'next_token'}),
  ],
)
def test_a_source_without_conversations_or_their_end_is_refused(tmp_path, key, values):
  assert raised.user_error(_open, _config(tmp_path, [{'messages': _CHAT}], **values)).key == key


@pytest.mark.parametrize('name', rules.RULES)
def test_what_is_held_out_is_never_asked_in_training(name, monkeypatch):
  monkeypatch.setattr(rules, 'NUMBERS', {'train': 6000, 'validation': 300})
  made = {split: list(rules.conversations(name, split)) for split in rules.NUMBERS}
  asked = {
    split: {(name in rules.HIDDEN and each.kind, turn) for each in of for turn in each.turns[::2]}
    for split, of in made.items()
  }
  assert not asked['train'] & asked['validation']
  assert len(asked['validation']) > 200
  kinds = collections.Counter(each.kind for each in made['validation'])
  assert set(kinds) == set(rules.RULES[name]) and max(kinds.values()) - min(kinds.values()) <= 1
  assert made['train'][7:9] == list(rules.conversations(name, 'train'))[7:9]


def test_rules_answer_rightly():
  answers = {
    **dict(each.turns for each in rules.conversations('instructions', 'validation')),
    **dict(each.turns for each in rules.conversations('dates', 'validation')),
  }
  for prompt, answer in answers.items():
    words = prompt.rstrip('.?').split()
    match words:
      case ['Add', a, 'and', b] | ['What', 'is', a, '+', b]:
        assert int(a) + int(b) == int(answer)
      case ['Copy' | 'Repeat', *_, word]:
        assert word == answer
      case ['Reverse', word] | ['Write', word, 'backwards']:
        assert ''.join(reversed(word)) == answer
      case ['Sort', *_, word]:
        assert sorted(word) == list(answer)
      case ['How', 'many', a, _, _, word] | ['Count', 'the', a, _, word]:
        assert word.count(a) == int(answer)
      case [*_, 'Does', _, 'have', 'a', thing]:
        assert prompt.count(f'a {thing}') == {'yes': 2, 'no': 1}[answer]
  assert answers['the seventh of January, twenty sixty-two'] == '2062-01-07'
  assert answers['the twenty-first of March, nineteen thirty-nine'] == '1939-03-21'
  assert answers['Tuesday, August 16th, 1966'] == '1966-08-16'


_MADE: dict[str, Callable[[str], str]] = {
  'copy': str,
  'swap': lambda word: ''.join(reversed(word)),
  'first': lambda word: word[:1],
  'last': lambda word: word[-1:],
  'first twice': lambda word: word[:1] * 2,
  'last twice': lambda word: word[-1:] * 2,
  'upper': lambda word: ''.join(c.upper() for c in word),
  'lower': lambda word: ''.join(c.lower() for c in word),
  'next letter': lambda word: ''.join(chr(ord(c) + 1 - 26 * (c in 'Zz')) for c in word),
}


def test_all_examples_of_a_hidden_rule_follow_it():
  of_a = set[str | None]()
  for made in rules.conversations('analogies', 'validation'):
    prompts, responses = made.turns[::2], made.turns[1::2]
    assert len(set(prompts)) == len(responses) == 33
    if made.kind in _MADE:
      assert responses == [_MADE[made.kind](word) for word in prompts]
    else:
      pairs = set(zip(''.join(prompts).lower(), ''.join(responses).lower(), strict=True))
      assert len(pairs) == len(dict(pairs)) == len({new for _, new in pairs})
      of_a.add(dict(pairs).get('a'))
  assert len(of_a) > 10  # each conversation has its own


def test_conversations_to_train_on_have_more_prompts_of_any_kind_before_the_last():
  lengths = collections.Counter(len(c.turns) for c in rules.conversations('instructions', 'train'))
  assert set(lengths) == {2, 4, 6, 8} and min(lengths.values()) > rules.NUMBERS['train'] / 5
  for name, split in (('instructions', 'validation'), ('dates', 'train'), ('dates', 'validation')):
    assert all(len(each.turns) == 2 for each in rules.conversations(name, split))


def test_a_source_by_rule_has_splits_and_turns():
  source = sources.open_source('builtin:dates', text_field='text', template='<{prompt}>')
  assert [part.split for part in source.parts] == ['train', 'validation']
  first, second, *_ = source.parts[1].read()
  assert first.label == 'first' and str(first.text)[:1] + str(first.text)[-1:] == '<>'
  assert second.label == 'response' and len(second.text) == 10
  other = sources.open_source('builtin:dates', text_field='text', template='{prompt} ')
  assert source.fingerprint != other.fingerprint
  assert documents.error('builtin:dates').key == 'data.template'
