"""A tokenizer.json of Hugging Face gives its own ids, and is kept whole in a run."""

import builtins
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from gpt_jax import config, errors
from gpt_jax.data import tokenizers

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


def describe(path):
  return json.dumps(tokenizers.description(config.DataConfig(tokenizer=f'hf:{path}')))


def names(tokenizer):
  """The special tokens by role, as the library spells them."""
  return tokenizer.to_dict()['special_tokens']


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


def test_ids_are_those_of_the_library(save):
  model = byte_level(ADDED)
  tokenizer = save(model)
  assert tokenizer.encode('the cat').tolist() == model.encode('the cat').ids
  assert tokenizer.vocab_size == model.get_vocab_size()
  assert (tokenizer.kind, tokenizer.cuts) == ('hf', False)


@pytest.mark.parametrize('token', ADDED)
def test_text_that_spells_a_special_token_is_ordinary(session_tokenizer, token):
  ids = session_tokenizer.encode(f'a {token} b').tolist()
  assert session_tokenizer.token_id(token) not in ids
  assert session_tokenizer.decode(ids) == f'a {token} b'


def test_what_a_file_would_add_or_cut_off_is_not(save):
  model = byte_level(ADDED)
  bare = model.encode('the cat sat').ids
  model.post_processor = hf.processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 1)]
  )
  model.enable_truncation(2)
  model.enable_padding(length=50)
  assert save(model).encode('the cat sat').tolist() == bare


def test_special_tokens_are_found_by_their_usual_names(save):
  tokenizer = save(byte_level(ADDED))
  roles = (tokenizer.start_of_text, tokenizer.end_of_text, tokenizer.padding, tokenizer.unknown)
  assert roles == (0, 1, 2, 3)
  ids = [0, *tokenizer.encode('the cat'), 2, 1, 2]
  assert tokenizer.decode(ids) == 'the cat'
  assert tokenizer.decode([3, 4]) == '<unk><|im_end|>'


@pytest.mark.parametrize(
  ('added', 'found'),
  [
    ([], {}),
    (['<|endoftext|>'], {'eos': '<|endoftext|>'}),
    (['</s>', '<|endoftext|>'], {'eos': '</s>'}),
    (
      ['<|begin_of_text|>', '<|end_of_text|>'],
      {'bos': '<|begin_of_text|>', 'eos': '<|end_of_text|>'},
    ),
    (['[CLS]', '[SEP]', '[PAD]', '[UNK]'], {'pad': '[PAD]', 'unk': '[UNK]'}),
  ],
)
def test_usual_names(save, added, found):
  assert names(save(byte_level(added))) == found


@pytest.mark.parametrize(
  ('beside', 'found'),
  [
    ({}, {'bos': '<s>', 'eos': '</s>', 'pad': '<pad>', 'unk': '<unk>'}),
    ({'eos_token': '<pad>'}, {'bos': '<s>', 'eos': '<pad>', 'unk': '<unk>'}),
    (
      {'bos_token': None, 'eos_token': {'content': '<|im_end|>', 'lstrip': False}},
      {'eos': '<|im_end|>', 'pad': '<pad>', 'unk': '<unk>'},
    ),
    (
      {f'{role}_token': '</s>' for role in ('bos', 'eos', 'pad', 'unk')},
      {'eos': '</s>'},
    ),
    (
      {'pad_token': '<unk>', 'eos_token': None},
      {'bos': '<s>', 'unk': '<unk>'},
    ),
  ],
)
def test_the_config_beside_it_names_the_special_tokens(save, beside, found):
  tokenizer = save(byte_level(ADDED), beside)
  assert names(tokenizer) == found
  assert (tokenizer.end_of_text is None) == ('eos' not in found)


def test_it_comes_back_without_its_file(save, tmp_path):
  tokenizer = save(byte_level(ADDED), {'eos_token': '<|im_end|>', 'pad_token': None})
  kept = json.dumps(tokenizer.to_dict(), ensure_ascii=False)
  for path in tmp_path.iterdir():
    path.unlink()
  again = tokenizers.from_dict(json.loads(kept))
  assert again.hash == tokenizer.hash
  assert (again.start_of_text, again.end_of_text, again.padding) == (0, 4, None)
  assert again.encode('the cat é </s>').tolist() == tokenizer.encode('the cat é </s>').tolist()


def test_what_decides_the_tokens_tells_files_apart(save, tmp_path):
  save(byte_level(ADDED))
  seen = [describe(tmp_path)]
  assert describe(tmp_path / 'tokenizer.json') == seen[0]
  save(byte_level(ADDED), {'eos_token': '<|im_end|>'})
  seen.append(describe(tmp_path))
  save(byte_level(ADDED[:3]), {'eos_token': '</s>'})
  seen.append(describe(tmp_path))
  assert len(set(seen)) == 3
  save(byte_level(ADDED[:3]), {'eos_token': '</s>', 'chat_template': 'anything'})
  assert describe(tmp_path) == seen[-1]


def test_holes_in_the_ids_are_within_the_vocabulary(save):
  model = hf.Tokenizer(hf.models.WordLevel({'a': 0, 'b': 7, '[UNK]': 3}, unk_token='[UNK]'))
  model.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  tokenizer = save(model)
  assert tokenizer.vocab_size == 8
  assert tokenizer.encode('b a c').tolist() == [7, 0, 3]
  with pytest.raises(errors.UserError, match='8 is outside the vocabulary'):
    tokenizer.decode([0, 8])
  with pytest.raises(errors.UserError, match='-1 is outside'):
    tokenizer.decode([-1])


def test_text_that_it_has_no_token_for_is_refused(save):
  model = hf.Tokenizer(hf.models.WordLevel({'a': 0}, unk_token='[UNK]'))
  with pytest.raises(errors.UserError, match='cannot encode'):
    save(model).encode('b')


def test_a_token_is_known_by_its_text(session_tokenizer):
  assert session_tokenizer.token_id('.') == session_tokenizer.encode('.')[0]
  assert session_tokenizer.token_id(' the') == session_tokenizer.encode(' the')[0]
  assert session_tokenizer.token_id('eos') == session_tokenizer.token_id('</s>') == 1
  assert session_tokenizer.token_id('<|im_end|>') == 4
  # In a byte-level vocabulary the entry é is the byte 0xE9, not the character.
  with pytest.raises(errors.UserError, match="'é' is 2 tokens of the hf tokenizer"):
    session_tokenizer.token_id('é')


def test_a_word_that_names_a_role_is_not_the_role(save):
  model = hf.Tokenizer(hf.models.WordLevel({'pad': 0, 'eos': 1, '</s>': 2}))
  model.add_special_tokens(['</s>'])
  tokenizer = save(model)
  assert tokenizer.token_id('eos') == 2
  with pytest.raises(errors.UserError, match='no token pad'):
    tokenizer.token_id('pad')


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


def test_lone_surrogates_are_question_marks(session_tokenizer):
  assert session_tokenizer.decode(session_tokenizer.encode('a\ud800')) == 'a?'


@pytest.mark.parametrize(
  'contents', ['', '{', 'no', '[]', '{}', '{"model": {"type": "x"}}', '\xff']
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, contents):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(contents.encode('latin-1'))
  with pytest.raises(errors.UserError, match=f'{path}.* is not (JSON|a tokenizer of Hugging Face)'):
    load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
  whole = byte_level().to_str()
  for end in range(0, len(whole) - 1, len(whole) // 20):
    (tmp_path / 't').write_text(whole[:end])
    with pytest.raises(errors.UserError, match='not JSON .*download it again'):
      load(tmp_path / 't')


@pytest.mark.parametrize('missing', ['tokenizer.json', 'no/such/folder'])
def test_a_missing_file_is_named(tmp_path, missing):
  path = tmp_path / missing
  for use in (load, describe):
    with pytest.raises(errors.UserError, match=f'{path} cannot be read.*hf:PATH'):
      use(tmp_path if missing == 'tokenizer.json' else path)


@pytest.mark.parametrize(
  ('beside', 'complaint'),
  [
    ('{', 'tokenizer_config.json is damaged'),
    ('[]', 'tokenizer_config.json is damaged'),
    ('{"eos_token": {"text": "</s>"}}', 'tokenizer_config.json is damaged'),
    ('{"eos_token": 2}', 'its special tokens must be text'),
    ('{"eos_token": "<end>"}', "'<end>', named as eos, is not in the vocabulary"),
  ],
)
def test_a_damaged_config_beside_it_is_named(tmp_path, beside, complaint):
  byte_level(ADDED).save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(beside)
  with pytest.raises(errors.UserError, match=complaint):
    load(tmp_path)


def test_without_the_package_the_fix_is_named(tmp_path, monkeypatch):
  byte_level().save(str(tmp_path / 'tokenizer.json'))
  real = builtins.__import__

  def missing(name, *args, **kwargs):
    if name == 'tokenizers':
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', missing)
  with pytest.raises(errors.UserError, match=r"pip install -e '\.\[tokenizers\]'"):
    load(tmp_path)
