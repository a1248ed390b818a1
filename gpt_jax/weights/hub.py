"""Models of the Hugging Face Hub: a name -> a folder in its cache.

The only module that imports huggingface_hub.
"""

import os
import pathlib
import sys

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
  try:
    import huggingface_hub
    from huggingface_hub import utils
  except ImportError as e:
    fix = "pip install 'gpt_jax[hub]'"
    raise errors.UserError(name, 'needs the package huggingface_hub', fix) from e
  if not sys.stderr.isatty():
    utils.disable_progress_bars()
  repository, _, revision = PUBLISHED.get(name, name.removeprefix(_PREFIX)).partition('@')
  try:
    folder = huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=_FILES, ignore_patterns=['*/*']
    )
  except (OSError, ValueError) as e:  # those of huggingface_hub are either
    problem = f'cannot be downloaded ({(str(e).splitlines() or [type(e).__name__])[0]:.300})'
    fix = 'check the name and the network, or name a folder that has the model'
    raise errors.UserError(name, problem, fix) from e
  return pathlib.Path(folder)
