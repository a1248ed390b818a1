"""Models of the Hugging Face Hub: a name -> a folder in its cache, and a folder -> a repository.

The only module that imports huggingface_hub.
"""

import contextlib
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from gpt_jax import errors

# As OpenAI published them.
PUBLISHED = {
  name: f'openai-community/{name}' for name in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')
}
_PREFIX = 'hf:'
# Weights that are no pickles, and what tokenizers read.
_FILES = ['*.json', '*.safetensors', 'merges.txt']
# Errors of huggingface_hub that don't say it in their first line.
_REASONS = {
  'RepositoryNotFoundError': 'there is none, or it is private',
  'RevisionNotFoundError': 'it has no such revision',
  'GatedRepoError': 'access is granted on its page',
}


def download(name: str) -> pathlib.Path | None:
  """Returns the folder of a model of the Hub, downloaded unless the cache has it.

  `name` is one of `PUBLISHED`, hf:OWNER/NAME or hf:OWNER/NAME@REVISION; of anything else, and of
  what is a local path, None is returned. The variables of huggingface_hub, such as HF_HUB_OFFLINE
  and HF_HOME, are honoured. Raises `UserError` if there is no such model, or no network.
  """
  if os.path.exists(name) or not (name in PUBLISHED or name.startswith(_PREFIX)):
    return None
  huggingface_hub = _library(name)
  repository, _, revision = PUBLISHED.get(name, name.removeprefix(_PREFIX)).partition('@')
  fix = 'check the name and the network; if it is private, hf auth login'
  options: Any = {
    'allow_patterns': _FILES,
    'ignore_patterns': ['*/*'],
    'revision': revision or None,
  }
  with _as_user_error(name, 'downloaded', fix), _bars(huggingface_hub.utils.tqdm) as bars:
    folder = huggingface_hub.snapshot_download(repository, tqdm_class=bars, **options)
  return pathlib.Path(folder)


def upload(folder: pathlib.Path, name: str) -> str:
  """Uploads the files of `folder` to the repository OWNER/NAME, made if it is new; returns its URL.

  Takes the token of `hf auth login`, or HF_TOKEN. Raises `UserError` if the Hub refuses it.
  """
  api = _library(name).HfApi()
  with _as_user_error(name, 'uploaded', 'hf auth login, or check the name and the network'):
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder)
  return f'{api.endpoint}/{name}'


def _library(name: str) -> Any:
  try:
    import huggingface_hub
    from huggingface_hub import utils
  except ImportError as e:
    fix = "pip install 'gpt_jax[hub]'"
    raise errors.UserError(name, 'needs the package huggingface_hub', fix) from e
  if not sys.stderr.isatty():
    utils.disable_progress_bars()
  return huggingface_hub


@contextlib.contextmanager
def _bars(base: Any) -> Iterator[Any]:
  """Yields a class of bars of which nothing is left on the screen when the `with` block ends."""
  made = list[Any]()

  def init(self: Any, *args: Any, **options: Any) -> None:
    base.__init__(self, *args, **options | {'leave': False})
    made.append(self)

  try:
    yield type('Bar', (base,), {'__init__': init})
  finally:
    for bar in made:  # huggingface_hub leaves them open
      bar.close()


@contextlib.contextmanager
def _as_user_error(name: str, done: str, fix: str) -> Iterator[None]:
  """Makes what huggingface_hub, or the HTTP library under it, raises a `UserError`."""
  try:
    yield
  except Exception as e:
    kind = type(e)
    if not isinstance(e, OSError | ValueError) and not kind.__module__.startswith('httpx'):
      raise
    reason = _REASONS.get(kind.__name__) or (str(e).splitlines() or [kind.__name__])[0][:300]
    raise errors.UserError(name, f'cannot be {done} ({reason})', fix) from e
