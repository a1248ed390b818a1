"""Models of the Hugging Face Hub: a name -> a folder in its cache, and a folder -> a repository.

The only module that imports huggingface_hub.
"""

import os
import pathlib
import sys
from typing import Any

from gpt_jax import errors

# As OpenAI published them.
PUBLISHED = {
  name: f'openai-community/{name}' for name in ('gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl')
}
_PREFIX = 'hf:'
# Weights that are no pickles, and what tokenizers read.
_FILES = ['*.json', '*.safetensors', 'merges.txt']


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
  try:
    folder = huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=_FILES, ignore_patterns=['*/*']
    )
  except (OSError, ValueError) as e:  # those of huggingface_hub are either
    problem = f'cannot be downloaded ({_first_line(e)})'
    fix = 'check the name and the network, or name a folder that has the model'
    raise errors.UserError(name, problem, fix) from e
  return pathlib.Path(folder)


def upload(folder: pathlib.Path, name: str) -> str:
  """Uploads the files of `folder` to the repository OWNER/NAME, made if it is new; returns its URL.

  Takes the token of `hf auth login`, or HF_TOKEN. Raises `UserError` if the Hub refuses it.
  """
  api = _library(name).HfApi()
  try:
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder)
  except (OSError, ValueError) as e:
    raise errors.UserError(name, f'cannot be uploaded ({_first_line(e)})', 'hf auth login') from e
  return f'https://huggingface.co/{name}'


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


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:300]
