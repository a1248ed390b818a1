"""The command shows what was asked for, says what it writes, and names what is invalid."""

import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import jax
import pytest

from gpt_jax import cli, config, inspect, models
from gpt_jax.data.tokenizers import char
from gpt_jax.downstream import activations, pictures
from gpt_jax.generation import language_model
from gpt_jax.weights import huggingface
from tests import raised, random_params
from tests.weights import saved

LETTERS = '\n .<>/?abcdefghijklmnopqrstuvwxyz'
PROMPT = '--prompt=some text'
_ALL = {'what it is made of', 'what it expects', 'what each layer would say', 'how it goes on'}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """A model directory; the model reads 16 characters."""
  tokenizer = char.CharTokenizer(LETTERS)
  sizes: dict[str, Any] = {'n_layer': 2, 'n_head': 2, 'n_embd': 8, 'block_size': 16}
  model = config.ModelConfig(**sizes, vocab_size=tokenizer.vocab_size)
  path = tmp_path_factory.mktemp('models') / 'tiny'
  huggingface.write_model(path, model, random_params.make(model), tokenizer)
  return path


@pytest.fixture
def command(directory, tmp_path, monkeypatch, capsys):
  """A function that runs the command in an empty folder: what it prints, and the files then."""
  monkeypatch.chdir(tmp_path)

  def run(*args, model=directory):
    values = inspect.define_flags()
    model_flag = [f'--model={model}'] if model else []
    cli.parse(values, ['inspect', *model_flag, *args], takes_config=False)
    inspect.main(values)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*') if path.is_file()}
    return capsys.readouterr().out, files

  return run


def _page(path):
  """The data of a page."""
  (data,) = re.findall(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
  return json.loads(data)


def _sections(out):
  return {name for name in _ALL if f'\n{name}' in out}


def test_all_of_a_model_is_printed_and_written_where_it_says(command, directory, tmp_path):
  out, files = command(PROMPT)
  assert _sections(out) == _ALL
  assert files == {f'pictures/tiny/{name}' for name in ('attention.png', 'loss.png', 'index.html')}
  assert all(f'wrote {file}\n' in out for file in files)
  data = _page(tmp_path / 'pictures' / 'tiny' / 'index.html')
  assert ''.join(data['prompt']) == 'some·text' and data['heads'] == [2, 2]
  assert {'parameters', 'next', 'lens', 'generation', 'attention', 'loss'} <= data.keys()
  assert len(data['lens']) == 3 and len(data['next']) == len(data['lens'][0]) == 9
  assert [follows for _, follows, *_ in data['next']] == [*data['prompt'][1:], None]
  model = language_model.load(directory)
  assert model.tokenizer is not None
  ids = model.tokenizer.encode('some text').tolist()
  assert data['attention'] == pictures.packed(activations.attention(model, ids))
  (sample,) = model.generate(['some text'], max_new_tokens=12)
  drawn = ''.join(follows for _, follows, *_ in data['generation'])
  assert drawn == (sample.text or '')[:8].replace(' ', '·').replace('\n', '↵'), 'to the context'
  assert f'{models.parameter_count(model.config):,} parameters' in out


@pytest.mark.parametrize(
  ('picture', 'sections', 'files'),
  [
    ('parameters', {'what it is made of'}, set()),
    ('next', {'what it expects'}, set()),
    ('lens,generation', {'what each layer would say', 'how it goes on'}, set()),
    ('attention', set(), {'attention.png'}),
    ('loss,page', set(), {'loss.png', 'index.html'}),
    ('page', _ALL, {'attention.png', 'loss.png', 'index.html'}),
  ],
)
def test_only_what_is_named_is_shown(command, picture, sections, files):
  out, found = command(PROMPT, f'--picture={picture}', '--output=here/there')
  assert _sections(out) == sections and found == {f'here/there/{name}' for name in files}


def test_two_pictures_need_no_model(command):
  out, files = command('--picture=kernel,mask', model=None)
  assert files == {'pictures/kernel.png', 'pictures/mask.png'}
  assert out.splitlines() == [f'wrote {file}' for file in sorted(files)]


def test_the_table_of_parameters_needs_no_prompt(command):
  out, _ = command('--picture=parameters')
  assert 'h_*/attn/c_attn/kernel' in out and '8 × 24' in out


def test_generation_follows_its_options(command):
  arguments = ('--picture=generation', '--max_new_tokens=3')
  out, _ = command(PROMPT, *arguments)
  assert len(out.split('\nhow it goes on')[1].strip().splitlines()) == 4
  greedy, _ = command(PROMPT, *arguments, '--temperature=0')
  assert greedy.count('100.0%, rank 1') == 3 and greedy != out


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a run of two steps."""
  model = dataclasses.replace(saved.MODEL, block_size=16)
  params = random_params.make(model)
  folder = tmp_path_factory.mktemp('runs') / 'mine'
  written = saved.save_run(folder, model, {1: params, 2: params}, val_losses={1: 3.5, 2: 3.0})
  lines = [{'step': 1, 'train/loss': 4.0, 'val/loss': 3.5}, {'step': 2, 'val/loss': 3.0}]
  written.metrics.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return folder


def test_the_losses_of_a_run_are_beside_those_that_are_measured(
  command, directory, run, monkeypatch
):
  drawn, draw = [], pictures.loss

  def loss(*args):
    drawn.append(args)
    return draw(*args)

  monkeypatch.setattr(pictures, 'loss', loss)
  (run.parent / 'text.txt').write_text('some other text, longer than the prompt' * 9)
  data = f'--data=text:{run.parent}/text.txt'
  _, files = command(data, '--picture=loss', model=run)
  assert files == {'pictures/mine/loss.png'}
  _, files = command(PROMPT, '--picture=loss', model=run / 'checkpoints' / '1')
  assert 'pictures/mine/1/loss.png' in files
  command(PROMPT, '--picture=loss', model=directory)
  (lines, levels), (same, of_prompt), (none, _) = drawn
  assert [line['val/loss'] for line in lines] == [3.5, 3.0] and same == lines and none == []
  guess, untrained, trained = levels.values()
  assert abs(untrained - guess) < 0.2 < abs(trained - guess), 'ln V is what nobody has learned'
  assert 'text.txt' in list(levels)[-1] and 'the prompt' in list(of_prompt)[-1]
  assert list(of_prompt.values())[-1] != trained


def _other(tmp_path_factory, **changes):
  model = dataclasses.replace(saved.MODEL, block_size=16, **changes)
  params = models.init(model, jax.random.key(0))
  return saved.save_run(tmp_path_factory.mktemp('runs') / 'other', model, {1: params}).path


def test_a_recurrent_model_has_all_but_what_attention_has(command, tmp_path_factory):
  path = _other(tmp_path_factory, kind='lstm', lstm_width=8, tie_embeddings=False)
  out, files = command(PROMPT, model=path)
  assert _sections(out) == _ALL - {'what each layer would say'}
  assert files == {'pictures/other/loss.png', 'pictures/other/index.html'}
  error = raised.user_error(command, PROMPT, '--picture=lens,next,attention', model=path)
  assert [each.key for each in error.all] == ['picture'] * 2


def test_a_classifier_has_attention_and_parameters(command, directory, monkeypatch):
  model = language_model.load(directory)
  classifier = dataclasses.replace(model.config, classes='bad,good')
  model = dataclasses.replace(model, config=classifier)
  monkeypatch.setattr(language_model, 'load', lambda path: model)
  out, files = command(PROMPT)
  assert _sections(out) == {'what it is made of'}
  assert files == {'pictures/tiny/attention.png', 'pictures/tiny/index.html'}
  assert raised.user_error(command, PROMPT, '--picture=next').key == 'picture'


def test_a_prompt_of_one_token_has_no_loss(command):
  _, files = command('--prompt=s')
  assert files == {'pictures/tiny/attention.png', 'pictures/tiny/index.html'}
  assert raised.user_error(command, '--prompt=s', '--picture=loss').key == 'picture'


@pytest.mark.parametrize(
  ('args', 'keys'),
  [
    ([PROMPT, '--picture=atention'], ['picture']),
    ([PROMPT, '--picture=next,,nothing'], ['picture'] * 2),
    ([], ['prompt']),
    (['--picture=loss'], ['prompt']),
    ([PROMPT, '--model='], ['model']),
    (['--model=', '--picture=lens', '--top_k=-1'], ['model', 'prompt', 'top_k']),
    ([PROMPT, '--max_new_tokens=0', '--temperature=-1'], ['max_new_tokens', 'temperature']),
    (['--prompt=some text that is too long'], ['prompt']),
    (['--prompt=SOME'], ['prompt']),
    (['--prompt=\udcff'], ['prompt']),
    ([PROMPT, '--data=text:nonesuch'], ['data.source']),
    (['--picture=loss', '--data=jsonl:file'], ['tokens']),
  ],
)
def test_mistakes_are_named_and_nothing_is_written(command, tmp_path, args, keys):
  (tmp_path / 'file').touch()
  error = raised.user_error(command, *args)
  assert sorted(each.key for each in error.all) == sorted(keys)
  message = cli.render(error, inspect.define_flags(), aliases=inspect.ALIASES)
  assert 'data.source' not in message and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  ('args', 'output'),
  [([PROMPT, '--picture=attention'], '/proc/pictures'), (['--picture=mask'], 'file/pictures')],
)
def test_an_output_that_cannot_be_written_is_named(command, tmp_path, args, output):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match=output):
    command(*args, f'--output={output}')


def test_a_prompt_is_at_most_what_a_map_can_show(command, monkeypatch):
  monkeypatch.setattr(inspect, '_MOST_TOKENS', 8)
  assert raised.user_error(command, PROMPT).key == 'prompt'


def test_a_model_without_a_tokenizer_is_an_error(command, directory, monkeypatch):
  model = dataclasses.replace(language_model.load(directory), tokenizer=None)
  monkeypatch.setattr(language_model, 'load', lambda path: model)
  assert raised.user_error(command, PROMPT).key == 'model'


def test_tokens_are_one_visible_line_each():
  tokenizer = saved.BYTE
  assert [inspect._spell(tokenizer, i) for i in b'a \n\t\r<\xf0'] == [
    'a',
    '·',
    '↵',
    '→',
    '\\u000d',
    '<',
    '\\xf0',
  ]
  assert tokenizer.eos_id is not None
  assert inspect._spell(tokenizer, tokenizer.eos_id) == f'⟨{tokenizer.eos_id}⟩'


def test_the_command_ends_with_2_at_a_mistake_and_with_0_without_one(tmp_path):
  command = [sys.executable, '-m', 'gpt_jax.inspect']
  wrong = subprocess.run([*command, '--picture=keernel'], capture_output=True, text=True)
  assert wrong.returncode == 2 and 'kernel' in wrong.stderr and 'Traceback' not in wrong.stderr
  right = subprocess.run(
    [*command, '--picture=kernel', f'--output={tmp_path}'], capture_output=True, text=True
  )
  assert right.returncode == 0 and (tmp_path / 'kernel.png').is_file(), right.stderr
