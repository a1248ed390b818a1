"""The machine that the tests see, eight devices made of the CPU, and the data that may be on it."""

import os
import pathlib
import signal

import pytest

from gpt_jax import errors

# Read when JAX first looks for devices, so they are set before any test imports it.
_DEVICES = '--xla_force_host_platform_device_count'

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A shell starts what runs in the background deaf to Ctrl-C, and so what that starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The user's cache is no place for what tests compile.
os.environ.setdefault('JAX_ENABLE_COMPILATION_CACHE', 'false')
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}=8'.strip()

_SHARED = pathlib.Path(__file__).resolve().parents[1].parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data():
  """The folder with real, prepared data that may lie beside the checkout."""
  if not _SHARED.is_dir():
    pytest.skip(f'no real data: {_SHARED} is not there')
  return _SHARED


@pytest.fixture(scope='session')
def vocabulary():
  """Makes GPT-2's vocabulary be found, for the rest of the session."""
  from gpt_jax.data.tokenizers import bpe

  with pytest.MonkeyPatch.context() as patch:
    if (_SHARED / 'tiktoken').is_dir():
      patch.setenv('TIKTOKEN_CACHE_DIR', str(_SHARED / 'tiktoken'))
    try:
      bpe.find_merges()
    except errors.UserError as e:
      pytest.skip(f'no GPT-2 vocabulary: {e}')
    yield
