"""Builds the documentation as a site: sphinx-build -c docs . site

Its pages are the files that a reader of the repository sees. Made here is only what the program
knows better: the order of the pages, what each command takes, the configs.
"""

import pathlib
import shutil
import subprocess
import sys

from sphinx import application

import gpt_jax
from gpt_jax import __main__

project, author, version = 'gpt_jax', 'the authors of gpt_jax', gpt_jax.__version__
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
root_doc = 'README'
include_patterns = [
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'docs/*.md',
  'notebooks/*.ipynb',
]
html_theme, html_title, html_copy_source = 'furo', 'gpt_jax', False
myst_heading_anchors = 3
nb_execution_mode = 'off'  # the notebooks have their outputs
default_role = 'code'  # docstrings quote as Markdown does
napoleon_use_ivar = True  # or attributes are described twice
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True}

highlight_language = 'none'  # where a block doesn't say
_variables = {'code-font-size': '0.72em'}  # room for 100 columns
html_theme_options = {'light_css_variables': _variables, 'dark_css_variables': _variables}

_ROOT = pathlib.Path(__file__).parents[1]
_PAGES = {
  'Guides': """
    docs/training docs/data docs/sampling docs/weights docs/measuring docs/optimizer
    docs/scaling_law docs/scale docs/inside""",
  'Tasks': 'docs/film_reviews docs/instructions docs/encoders',
  'Notebooks': """
    notebooks/train_your_first_gpt notebooks/look_inside_gpt2 notebooks/film_reviews""",
  'Reference': 'docs/commands docs/configs docs/functions docs/performance',
  'Contributing': 'CONTRIBUTING CHANGELOG',
}
_MODULES = {
  'Using a model': """
    gpt_jax gpt_jax.generation.language_model gpt_jax.generation.settings
    gpt_jax.generation.processors gpt_jax.weights.saved_model gpt_jax.evaluation.scoring
    gpt_jax.downstream.classify gpt_jax.downstream.search gpt_jax.downstream.activations
    gpt_jax.errors""",
  'Models': """
    gpt_jax.models.gpt gpt_jax.models.encoder_decoder gpt_jax.models.lstm
    gpt_jax.models.classifier gpt_jax.models.attention gpt_jax.models.layers
    gpt_jax.models.output gpt_jax.models.lora""",
  'Training': """
    gpt_jax.config gpt_jax.training.fit gpt_jax.training.loop gpt_jax.training.step
    gpt_jax.training.objectives gpt_jax.training.optimizer gpt_jax.training.scaling_law
    gpt_jax.parallel.sharding""",
  'Data': """
    gpt_jax.data.prepare gpt_jax.data.loader gpt_jax.data.store gpt_jax.data.splits
    gpt_jax.data.batches.batch gpt_jax.data.batches.order""",
}


def _contents() -> str:
  """Returns the navigation, which stands at the end of the first page and isn't shown there."""
  tree = '```{{toctree}}\n:hidden:\n:caption: {}\n\n{}\n```\n'
  return '\n'.join(tree.format(name, '\n'.join(pages.split())) for name, pages in _PAGES.items())


def _commands() -> str:
  """Returns what --help of each command prints."""
  texts = []
  for name in __main__.commands():
    command = [sys.executable, '-m', f'gpt_jax.{name}', '--help']
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    texts.append(f'## {name}\n\n```text\n{done.stdout}```\n')
  return '\n'.join(texts)


def _configs() -> str:
  """Returns each config, which is its own documentation."""
  files = sorted(_ROOT.glob('configs/*.py'))
  return '\n'.join(f'## {p.stem}\n\n```python\n{p.read_text("utf-8")}```\n' for p in files)


def _functions() -> str:
  """Returns what the docstrings of modules say."""
  module = '### {0}\n\n```{{eval-rst}}\n.. automodule:: {0}\n```\n'
  texts = []
  for title, names in _MODULES.items():
    texts += [f'## {title}\n', *map(module.format, names.split())]
  return '\n'.join(texts)


_MADE = {
  'README': _contents,
  'docs/commands': _commands,
  'docs/configs': _configs,
  'docs/functions': _functions,
}


def _complete(app: application.Sphinx, name: str, source: list[str]) -> None:
  if name in _MADE:
    source[0] += f'\n{_MADE[name]()}'


def _write_index(app: application.Sphinx, error: Exception | None) -> None:
  if not error:
    shutil.copy(app.outdir / 'README.html', app.outdir / 'index.html')


def setup(app: application.Sphinx) -> None:
  app.connect('source-read', _complete)
  app.connect('build-finished', _write_index)
