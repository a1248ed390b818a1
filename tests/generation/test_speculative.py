"""A draft model spares time and changes nothing: the text without drawing, its chances with.

Compiling is what takes time here, so tests share programs: they have four rows where they may.
"""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config as config_lib
from gpt_jax import errors
from gpt_jax.data.tokenizers import char
from gpt_jax.generation import engine, sampling, speculative, text
from gpt_jax.models import gpt
from tests import random_params
from tests.generation import sessions

BLOCK = 13  # neither even nor a power of two
LETTERS = '\nabcdefghijklmnopqrstuvwxyz.,!'
VOCAB = len(LETTERS)
_prompt = functools.partial(sessions.prompt, VOCAB)
NEW = 3 * BLOCK
SCANNED = (('scan_layers', True), ('n_layer', 2))
# Another shape, a longer context, a vocabulary without padding.
SMALL = (('n_head', 1), ('n_embd', 8), ('block_size', 20), ('pad_vocab_to', 1))
SIX = (('vocab_size', 6), ('block_size', 8), ('pad_vocab_to', 8))


@functools.cache
def _programs(changes):
  config = config_lib.ModelConfig(
    n_layer=1, n_head=2, n_embd=16, block_size=BLOCK, vocab_size=VOCAB
  )
  return engine.Engine(dataclasses.replace(config, **dict(changes)), None)


@functools.cache
def _engine(changes=(), *, seed=1, noise=0.0):
  """A tiny model whose every parameter is random and large enough for decided predictions."""
  made = copy.copy(_programs(changes))
  made.params = random_params.make(made.config, seed=seed, noise=noise)
  return made


NEAR = functools.partial(_engine, noise=0.1)
UNRELATED = functools.partial(_engine, SMALL, seed=2)


PROMPTS = [_prompt(1), _prompt(5), _prompt(BLOCK), _prompt(5)]


def _session(prompts, draft, *, model=None, new=NEW, guesses=4, log_probs=False, **options):
  """With a draft, or without one where it is None."""
  model = model or _engine()
  how = _sampling(vocab_size=model.config.vocab_size, **options)
  settings = {'max_new_tokens': new, 'log_probs': log_probs}
  if draft is None:
    return engine.Session(model, prompts, how, **settings)
  return speculative.Session(model, draft, prompts, how, draft_tokens=guesses, **settings)


def _sampling(*, vocab_size=VOCAB, end_of_text=None, bias_V=None, **options):
  settings = config_lib.GenerationConfig(**{'temperature': 1.0, 'top_k': 0, 'seed': 5, **options})
  return sampling.make(settings, vocab_size=vocab_size, end_of_text=end_of_text, bias_V=bias_V)


def _tokens(*args, count=10**6, **options):
  return [tokens for tokens, _ in sessions.run(_session(*args, **options), count)]


# Without drawing, it is the same text.


@pytest.mark.parametrize(
  ('architecture', 'other', 'guesses'),
  [((), UNRELATED, 1), (SCANNED, None, 4)],
  ids=['unrelated', 'itself'],
)
def test_greedy_text_is_the_same_whatever_the_draft_guesses(architecture, other, guesses):
  model = _engine(architecture)
  plain = _session(PROMPTS, None, model=model, temperature=0.0)
  expected = [tokens for tokens, _ in sessions.run(plain)]
  shares = []
  for draft, asked in [
    (other() if other else _engine(architecture, seed=2), guesses),
    (_engine(architecture, noise=0.1), 4),
    (model, 4),
  ]:
    session = _session(PROMPTS, draft, model=model, guesses=asked, temperature=0.0)
    assert [tokens for tokens, _ in sessions.run(session)] == expected
    assert session.slides == plain.slides
    shares.append(sum(session.guessed) / (len(PROMPTS) * NEW))
  unrelated, near, same = shares
  assert unrelated < 0.2 < near < 0.95 and same == 1


def test_random_ragged_batches_are_decoded_as_without_a_draft():
  rng = np.random.default_rng(3)
  for batch in range(20):
    prompts = [_prompt(length, seed=batch) for length in rng.integers(1, BLOCK + 1, 4).tolist()]
    options = {'new': int(rng.integers(1, 2 * BLOCK)), 'temperature': 0.0}
    expected = _tokens(prompts, None, **options)
    assert _tokens(prompts, NEAR(), **options) == expected
    assert _tokens(prompts, UNRELATED(), guesses=1, **options) == expected


def _bias_for(*tokens):
  bias_V = np.full(128, -np.inf, np.float32)
  bias_V[list(tokens)] = 0
  return bias_V


@pytest.mark.parametrize(
  ('allowed', 'end', 'minimum'), [(range(VOCAB), 7, 20), ([3, 4], 9, 1)], ids=str
)
def test_processors_see_each_guess_with_what_comes_before_it(allowed, end, minimum):
  """In the second case, no token is possible any more once all pairs of two tokens came."""
  options = {
    'temperature': 1e-30,  # draws, and always the likeliest
    'repetition_penalty': 1.5,
    'presence_penalty': 2.0,
    'frequency_penalty': 0.7,
    'no_repeat_ngram': 2,
    'min_new_tokens': minimum,
    'bias_V': _bias_for(*allowed),
    'end_of_text': end,
    'log_probs': True,
  }
  expected = sessions.run(_session(PROMPTS, None, **options))
  assert min(len(tokens) for tokens, _ in expected) < NEW
  for draft in (NEAR(), _engine()):
    session = _session(PROMPTS, draft, **options)
    rows = sessions.run(session)
    assert [tokens for tokens, _ in rows] == [tokens for tokens, _ in expected]
    for (_, log_probs), (_, expected_log_probs) in zip(rows, expected, strict=True):
      np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-4, rtol=1e-4)
  # They hold for the draft too, or it would guess differently.
  assert session.guessed == [len(tokens) for tokens, _ in expected]


# What else is in the batch, and how much is asked for at a time, changes nothing.


def test_the_end_of_a_text_may_be_among_the_guesses():
  for draft in (NEAR(), _engine()):
    endless = _tokens(PROMPTS, draft, temperature=1.5)
    lengths = set()
    for token in range(VOCAB):
      ends = [row.index(token) + 1 if token in row else NEW for row in endless]
      result = _tokens(PROMPTS, draft, temperature=1.5, end_of_text=token)
      assert result == [row[:end] for row, end in zip(endless, ends, strict=True)]
      lengths.update(ends)
    assert len(lengths) > 20


@pytest.mark.parametrize('count', [1, 3, BLOCK])
def test_a_text_is_the_same_however_many_tokens_come_at_a_time(count):
  whole = _tokens(PROMPTS, NEAR())
  assert _tokens(PROMPTS, NEAR(), count=count) == whole
  for new in (1, BLOCK, 20):
    fewer = _tokens(PROMPTS, NEAR(), count=count, new=new)
    assert fewer == [tokens[:new] for tokens in whole]


def test_a_row_depends_on_seed_prompt_and_copy_alone():
  many = _tokens(PROMPTS, NEAR())
  assert len(set(map(tuple, many))) == 4
  for row in (0, 1, 2):
    assert _tokens(PROMPTS[row : row + 1], NEAR()) == [many[row]]
  order = [2, 1, 0, 3]
  assert _tokens([PROMPTS[i] for i in order], NEAR()) == [many[i] for i in order]
  other = _tokens(PROMPTS, NEAR(), seed=6)
  assert all(a != b for a, b in zip(many, other, strict=True))


def test_a_row_that_is_ended_by_hand_stays_as_it_is():
  whole = _tokens(PROMPTS, NEAR())
  session = _session(PROMPTS, NEAR())
  first = session.advance(1)
  session.end([0])
  rest = sessions.run(session)
  assert first[0][0] == whole[0][:1] and rest[0][0] == []
  for row in (1, 2, 3):
    assert first[row][0] + rest[row][0] == whole[row]


# With drawing, it is as likely as without a draft.

PROMPT = [1, 4, 2]


def _chances(options):
  """The probability of each text of 3 tokens, from the model without a cache."""
  model, how = _engine(SIX), _sampling(vocab_size=6, **options)
  prompt_BV = jnp.tile(np.isin(np.arange(8), PROMPT), (36, 1)) if how.counts_tokens else None

  @jax.jit
  def next_token(tokens_BM, produced_B, counts_BV):
    logits_BLV, _ = gpt.GPT(model.config).apply({'params': model.params}, tokens_BM)
    logits_BV = logits_BLV[jnp.arange(36), produced_B + len(PROMPT) - 1]
    counts_BV = counts_BV if how.counts_tokens else None
    history = sampling.History(
      tokens_BM, produced_B + len(PROMPT), produced_B, prompt_BV, counts_BV
    )
    return jax.nn.softmax(sampling.process(how, logits_BV, history))

  chances: dict[tuple[int, ...], float] = {(): 1.0}
  for t in range(3):
    ended = {known: p for known, p in chances.items() if options.get('end_of_text') in known}
    going = [known for known in chances if known not in ended]  # at most 36
    tokens_BM, counts_BV = np.zeros((36, 8), np.int32), np.zeros((36, 8), np.int32)
    for row, known in enumerate(going):
      tokens_BM[row, : 3 + t] = [*PROMPT, *known]
      counts_BV[row] = np.bincount(np.array(known, int), minlength=8)
    p_BV = np.asarray(next_token(tokens_BM, jnp.full(36, t), counts_BV))
    longer = {
      (*known, token): chances[known] * float(p_BV[row, token])
      for row, known in enumerate(going)
      for token in range(6)
    }
    chances = {**ended, **longer}
  return chances


def _chi2_p(texts, chances):
  """The chance of a deviation from `chances` that is at least as large."""
  drawn = dict.fromkeys(chances, 0)
  for tokens in texts:
    drawn[tuple(tokens)] += 1
  if any(times and not chances[known] for known, times in drawn.items()):
    return 0.0
  ranked = sorted(chances, key=lambda known: chances[known])
  expected = np.array([chances[known] for known in ranked]) * len(texts)
  observed = np.array([drawn[known] for known in ranked])
  rare = int(np.searchsorted(np.cumsum(expected), 5)) + 1  # which count as one
  expected = np.array([expected[:rare].sum(), *expected[rare:]])
  observed = np.array([observed[:rare].sum(), *observed[rare:]])
  chi2 = ((observed - expected) ** 2 / expected).sum()
  return float(jax.scipy.stats.chi2.sf(chi2, len(expected) - 1))


def _texts(options):
  """Many texts, and the share of their tokens that the draft guessed."""
  prompts, draft = [PROMPT] * 20_000, _engine(SIX, noise=0.4)
  session = _session(prompts, draft, model=_engine(SIX), new=3, guesses=2, **options)
  texts = [tokens for tokens, _ in sessions.run(session)]
  return texts, sum(session.guessed) / sum(map(len, texts))


@pytest.mark.parametrize(
  'options',
  [
    {'temperature': 2.0, 'top_k': 4, 'top_p': 0.95},
    {'temperature': 2.0, 'frequency_penalty': 3.0, 'repetition_penalty': 1.5, 'end_of_text': 3},
  ],
  ids=str,
)
def test_texts_are_as_likely_as_without_a_draft(options):
  texts, share = _texts(options)
  assert _chi2_p(texts, _chances(options)) > 0.01
  assert 0.2 < share < 0.9  # all or nothing would prove little


_JUDGE = speculative.judge


def _replaced_from_p(how, p_BV, q_BV, guess_B, keys_B):
  """As if what p has more than q didn't matter."""
  _, right_B = _JUDGE(how, p_BV, q_BV, guess_B, keys_B)
  return jnp.where(right_B, guess_B, sampling.draw(how, p_BV, keys_B)), right_B


def test_another_rule_would_be_seen(monkeypatch):
  monkeypatch.setattr(speculative, 'judge', _replaced_from_p)
  monkeypatch.setattr(speculative, '_program', speculative._program.__wrapped__)
  texts, _ = _texts({'temperature': 2.0})
  assert _chi2_p(texts, _chances({'temperature': 2.0})) < 1e-6


def _keys(count):
  return sampling.token_keys(sampling.row_keys(0, jnp.zeros(count, jnp.int32)), jnp.arange(count))


_judge = jax.jit(speculative.judge)


def _judged(p_V, q_V, guess_B):
  """Of 20,000 rows."""
  p_BV, q_BV = (jnp.tile(jnp.log(jnp.array(x_V)), (20_000, 1)) for x_V in (p_V, q_V))
  return map(np.asarray, _judge(_sampling(), p_BV, q_BV, guess_B, _keys(20_000)))


def test_a_guess_is_taken_as_often_as_the_distributions_have_in_common():
  p_V, q_V = np.array([0.5, 0.1, 0.4, 0.0]), np.array([0.1, 0.5, 0.3, 0.1])
  guess_B = np.random.default_rng(0).choice(4, 20_000, p=q_V)
  token_B, right_B = _judged(p_V, q_V, guess_B)
  assert abs(right_B.mean() - np.minimum(p_V, q_V).sum()) < 0.015
  assert _chi2_p(token_B[:, None], {(i,): p for i, p in enumerate(p_V)}) > 0.01
  assert (token_B == guess_B)[right_B].all()
  assert set(token_B[~right_B]) == {0, 2}  # which the draft gives too little


def test_equal_distributions_accept_and_disjoint_ones_refuse():
  guess_B = np.arange(20_000) % 3
  _, right_B = _judged([0.2, 0.5, 0.3, 0.0], [0.2, 0.5, 0.3, 0.0], guess_B)
  assert right_B.all()
  token_B, right_B = _judged([0.0, 0.5, 0.0, 0.5], [0.7, 0.0, 0.3, 0.0], guess_B % 2 * 2)
  assert not right_B.any() and set(token_B) == {1, 3}


def test_a_guess_that_is_refused_where_nothing_is_left_is_replaced_from_p():
  p_V = [0.0, 0.0, 0.5, 0.5]
  token_B, right_B = _judged(p_V, p_V, np.zeros(20_000, int))
  assert not right_B.any() and set(token_B) == {2, 3}


# From text to text.


def _model(changes=(), *, letters=LETTERS, noise=0.0):
  if len(letters) != VOCAB:
    changes = (('vocab_size', len(letters)),)
  made = _engine(changes, noise=noise)
  return text.TextModel(made.config, made.params, char.CharTokenizer(letters))


def test_generate_and_stream_give_the_text_that_they_give_without_a_draft():
  model, draft, prompts = _model(), _model(noise=0.1), ['bad', 'j', 'cab', 'bad']
  options = {'max_new_tokens': 30, 'temperature': 0.0}
  plain = model.generate(prompts, **options)
  assert model.generate(prompts, draft=draft, **options) == plain
  stop = [plain[0].text[4:6], plain[1].text[7:9]]
  stopped = model.generate(prompts, stop=stop, **options)
  assert 'stop' in {sample.ended for sample in stopped}
  assert model.generate(prompts, stop=stop, draft=draft, **options) == stopped


def test_a_stream_is_the_text_that_is_generated():
  model, draft = _model(), _model(noise=0.1)
  drawn = model.generate('bad', draft=draft, max_new_tokens=30)
  parts = list(model.stream('bad', draft=draft, max_new_tokens=30))
  assert ''.join(parts) == drawn[0].text and len(parts) > 1


def _bare(**changes):
  return dataclasses.replace(_model(**changes), tokenizer=None)


@pytest.mark.parametrize(
  ('draft', 'options', 'words'),
  [
    (lambda: _model(letters=LETTERS[::-1]), {}, ['draft model with another vocabulary']),
    (lambda: _model(letters=LETTERS + '?'), {}, ['draft model with another vocabulary']),
    (lambda: _bare(), {}, ['draft model with another vocabulary']),
    (lambda: _model((('block_size', 7),)), {}, ['context of 7', 'model, 13', 'block_size']),
    (lambda: 'runs/small', {}, ["'runs/small'", 'gpt_jax.load']),
    (_model, {'num_beams': 2}, ['num_beams']),
    (_model, {'contrastive_alpha': 0.5, 'top_k': 4}, ['contrastive_alpha']),
    (_model, {'draft_tokens': 0}, ['draft_tokens: 0 must be']),
  ],
)
def test_a_draft_that_does_not_fit_is_refused(draft, options, words):
  for use in (_model().generate, _model().stream):
    with pytest.raises(errors.UserError) as caught:
      use('bad', draft=draft(), **options)
    assert all(word in str(caught.value) for word in ['draft', *words])


def test_models_without_tokenizers_need_the_same_number_of_tokens():
  options = {'max_new_tokens': 9, 'temperature': 0.0}
  plain = _bare().generate(PROMPTS, **options)
  assert _bare().generate(PROMPTS, draft=_bare(noise=0.1), **options) == plain
  with pytest.raises(errors.UserError, match='another vocabulary'):
    _bare().generate(PROMPTS, draft=_bare(letters=LETTERS + '?'), **options)
