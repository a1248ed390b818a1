"""A tokenizer.json of Hugging Face gives its own ids, and is kept whole in a run."""

import json
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import config
from gpt_jax.data import tokenizers
from gpt_jax.data.tokenizers import base
from tests import raised

hf = pytest.importorskip('tokenizers', reason='the tokenizers package is not installed')

ADDED = ['<s>', '</s>', '<pad>', '<unk>', '<|im_end|>']


def byte_level(added=()):
  """A byte-level BPE in the manner of GPT-2 that has learnt a few merges."""
  model = hf.Tokenizer(hf.models.BPE())
  model.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = hf.decoders.ByteLevel()
  trainer = hf.trainers.BpeTrainer(
    vocab_size=280 + len(added),
    special_tokens=list(added),
    initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  model.train_from_iterator(['the cat sat on the mat.'] * 5, trainer)
  return model


def load(path):
  return tokenizers.build(config.DataConfig(tokenizer=f'hf:{path}'), {})


@pytest.fixture
def save(tmp_path):
  """Writes a tokenizer.json (and what is to lie beside it) and loads it."""

  def write(model, beside=None):
    model.save(str(tmp_path / 'tokenizer.json'))
    if beside is not None:
      (tmp_path / 'tokenizer_config.json').write_text(json.dumps(beside))
    return load(tmp_path)

  return write


@pytest.fixture(scope='session')
def session_tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp('hf') / 'any name'
  byte_level(ADDED).save(str(path))
  return load(path)


@hypothesis.given(text=st.text())
def test_any_text_comes_back(session_tokenizer, text):
  ids = session_tokenizer.encode(text)
  assert ids.dtype == 'uint32' and ids.ndim == 1
  assert session_tokenizer.decode(ids) == session_tokenizer.decode(ids.tolist()) == text
  specials = {session_tokenizer.token_id(role) for role in ('bos', 'eos', 'pad', 'unk')}
  assert not specials & set(ids.tolist())
  assert session_tokenizer.decode(session_tokenizer.encode(f'{text}\ud800')) == f'{text}?'


def test_ids_are_those_of_the_library_without_what_the_file_would_add_or_cut_off(save):
  model = byte_level(ADDED)
  bare = model.encode('the cat sat').ids
  model.post_processor = hf.processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)]
  )
  model.enable_truncation(2)
  model.enable_padding(length=50)
  tokenizer = save(model)
  assert tokenizer.encode('the cat sat').tolist() == bare
  assert tokenizer.vocab_size == model.get_vocab_size()
  assert (tokenizer.kind, tokenizer.cuts) == ('hf', False)


@pytest.mark.parametrize('token', ADDED)
def test_a_special_token_stands_for_no_text_and_its_spelling_is_ordinary(session_tokenizer, token):
  ids = session_tokenizer.encode(f'a {token} b').tolist()
  assert session_tokenizer.token_id(token) not in ids
  assert session_tokenizer.decode(ids) == f'a {token} b'
  text = token if token in ('<unk>', '<|im_end|>') else ''
  assert session_tokenizer.decode([session_tokenizer.token_id(token), *ids]) == f'{text}a {token} b'


@pytest.mark.parametrize(
  ('added', 'beside', 'found'),
  [
    ([], None, {}),
    (['</s>', '<|endoftext|>'], None, {'eos': '</s>'}),
    (['<bos>', '<|end_of_text|>'], None, {'bos': '<bos>', 'eos': '<|end_of_text|>'}),
    (['[CLS]', '[SEP]', '[PAD]', '[UNK]'], None, {'pad': '[PAD]', 'unk': '[UNK]'}),
    (ADDED, {}, {'bos': '<s>', 'eos': '</s>', 'pad': '<pad>', 'unk': '<unk>'}),
    (ADDED, {'eos_token': '<pad>'}, {'bos': '<s>', 'eos': '<pad>', 'unk': '<unk>'}),
    (
      ADDED,
      {'bos_token': None, 'eos_token': {'content': '<|im_end|>', 'lstrip': False}},
      {'eos': '<|im_end|>', 'pad': '<pad>', 'unk': '<unk>'},
    ),
    (ADDED, {f'{role}_token': '</s>' for role in base.SPECIAL_TOKENS}, {'eos': '</s>'}),
    (ADDED, {'pad_token': '<unk>', 'eos_token': None}, {'bos': '<s>', 'unk': '<unk>'}),
  ],
)
def test_special_tokens_have_usual_names_or_those_of_the_config_beside(save, added, beside, found):
  tokenizer = save(byte_level(added), beside)
  assert tokenizer.to_dict()['special_tokens'] == found
  assert (tokenizer.eos_id is None) == ('eos' not in found)


def test_it_comes_back_without_its_file(save, tmp_path):
  tokenizer = save(byte_level(ADDED), {'eos_token': '<|im_end|>', 'pad_token': None})
  (tmp_path / 'tokenizer.json').unlink()
  again = tokenizers.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
  assert again.hash == tokenizer.hash
  assert (again.bos_id, again.eos_id, again.pad_id) == (0, 4, None)
  assert again.encode('the cat é </s>').tolist() == tokenizer.encode('the cat é </s>').tolist()


def test_the_description_distinguishes_what_decides_the_tokens(save, tmp_path):
  def describe(added, **beside):
    save(byte_level(added), beside)
    return json.dumps(tokenizers.description(config.DataConfig(tokenizer=f'hf:{tmp_path}')))

  few = describe(ADDED[:3], eos_token='</s>')
  assert len({few, describe(ADDED), describe(ADDED, eos_token='<|im_end|>')}) == 3
  assert describe(ADDED[:3], eos_token='</s>', chat_template='decides nothing') == few


def test_holes_in_the_ids_are_within_the_vocabulary(save):
  model = hf.Tokenizer(hf.models.WordLevel({'a': 0, 'b': 7}, unk_token='[UNK]'))
  tokenizer = save(model)
  assert tokenizer.vocab_size == 8 and tokenizer.encode('b').tolist() == [7]
  for bad in (8, -1):
    assert raised.user_error(tokenizer.decode, [0, bad]).key == 'ids'
  assert raised.user_error(tokenizer.encode, 'c').key == 'text'  # there is no [UNK]


def test_a_token_is_known_by_its_text(session_tokenizer, save):
  for text in ('.', ' the'):
    assert session_tokenizer.token_id(text) == session_tokenizer.encode(text)[0]
  assert session_tokenizer.token_id('eos') == session_tokenizer.token_id('</s>') == 1
  # In a byte-level vocabulary the entry é is the byte 0xE9, not the character.
  assert raised.user_error(session_tokenizer.token_id, 'é').key == 'token'
  # A word that names a role is not the role.
  model = hf.Tokenizer(hf.models.WordLevel({'pad': 0, 'eos': 1, '</s>': 2}))
  model.add_special_tokens(['</s>'])
  tokenizer = save(model)
  assert tokenizer.token_id('eos') == 2
  assert raised.user_error(tokenizer.token_id, 'pad').key == 'token'


def test_the_space_of_a_token_is_shown(save):
  """SentencePiece's decoders drop the space at the start of a text."""
  vocabulary = {'▁the': 0, '▁cat': 1, 's': 2, '<unk>': 3}
  model = hf.Tokenizer(hf.models.BPE(vocabulary, [], unk_token='<unk>'))
  model.pre_tokenizer = hf.pre_tokenizers.Metaspace()
  model.decoder = hf.decoders.Metaspace()
  tokenizer = save(model)
  assert tokenizer.decode([0, 1, 2]) == 'the cats'
  assert [tokenizer.token_bytes(i) for i in range(3)] == [b' the', b' cat', b's']
  assert len(tokenizer.encode('s')) == 2 and tokenizer.token_id('s') == 2


class TestDamage:
  @pytest.mark.parametrize(
    'contents',
    [
      *(None, b'', b'{', b'[]', b'{}', b'{"model": {"type": "x"}}', b'\xff', b'"\\ud800"'),
      b'{"model": {"type": "BPE", "vocab": [[[5]]], "merges": {}}}',
      b'[' * 100_000,
    ],
  )
  def test_a_file_that_is_missing_or_no_tokenizer_is_named(self, tmp_path, contents):
    path = tmp_path / 'tokenizer.json'
    if contents is not None:
      path.write_bytes(contents)
    for given in (tmp_path, path):
      assert raised.user_error(load, given).key == str(path)

  @pytest.mark.parametrize('token', [5, ['a'], {}, '<end>'])
  def test_a_special_token_that_is_not_in_the_vocabulary_is_refused(self, save, token):
    description = save(byte_level(ADDED)).to_dict() | {'special_tokens': {'eos': token}}
    assert raised.user_error(tokenizers.from_dict, description).key == 'data.tokenizer'
    if isinstance(token, str):
      error = raised.user_error(save, byte_level(ADDED), {'eos_token': token})
      assert error.key.endswith('tokenizer.json') and repr(token) in error.problem

  def test_a_special_token_that_is_not_unicode_is_refused(self, save):
    description = save(byte_level(ADDED)).to_dict() | {'special_tokens': {'eos': '\ud800'}}
    assert raised.user_error(tokenizers.from_dict, description).key == 'data.tokenizer'
    error = raised.user_error(save, byte_level(ADDED), {'eos_token': '\ud800'})
    assert error.key.endswith('tokenizer_config.json')

  @pytest.mark.parametrize(
    'beside',
    [
      *(b'{', b'[]', b'\xff', b'[' * 100_000, b'{"eos_token": {"text": "</s>"}}'),
      *(b'{"eos_token": 2}', b'{"pad_token": ["</s>"]}', b'{"bos_token": {"content": [5]}}'),
    ],
  )
  def test_a_damaged_config_beside_it_is_named(self, save, tmp_path, beside):
    save(byte_level(ADDED))
    (tmp_path / 'tokenizer_config.json').write_bytes(beside)
    assert raised.user_error(load, tmp_path).key == str(tmp_path / 'tokenizer_config.json')


def test_without_the_package_its_extra_is_named(save, monkeypatch):
  description = save(byte_level()).to_dict()
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  error = raised.user_error(tokenizers.from_dict, description)
  assert error.key == 'data.tokenizer' and 'gpt_jax[tokenizers]' in error.fix
