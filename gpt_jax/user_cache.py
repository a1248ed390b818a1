"""The user's cache directory, all of which may be deleted, and the compiled programs in it."""

import os
import pathlib
import warnings
from typing import Any

# Seconds; what compiles faster isn't worth a file.
_WORTH_KEEPING = 0.1


def folder() -> pathlib.Path:
  """Where gpt_jax keeps what it can make again: gpt_jax in $XDG_CACHE_HOME or ~/.cache."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home) / 'gpt_jax'


def keep_compiled_programs() -> None:
  """Makes JAX keep what it compiles, so that the same command starts sooner the next time.

  JAX's own variables count where they are set: JAX_COMPILATION_CACHE_DIR is the folder,
  JAX_ENABLE_COMPILATION_CACHE=false keeps nothing, and
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says what is worth it. Without a folder that can be
  written nothing is kept.
  See https://docs.jax.dev/en/latest/persistent_compilation_cache.html.
  """
  import jax

  config: Any = jax.config  # its attributes are not declared
  if not config.jax_enable_compilation_cache:
    return
  # A disk that is full or a folder that has gone is no reason to bother the user.
  warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation cache')
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    path = folder() / 'xla'
    try:
      # JAX runs what lies there: it is for the user alone.
      path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
      return
    jax.config.update('jax_compilation_cache_dir', str(path))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH_KEEPING)
