"""The user's cache folder, all of which may be deleted, and the compiled programs in it."""

import os
import pathlib
import warnings
from typing import Any

_WORTH_CACHING = 0.1  # seconds of compilation


def folder() -> pathlib.Path:
  """Returns the folder of what can be made again: gpt_jax in $XDG_CACHE_HOME or ~/.cache."""
  home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return pathlib.Path(home) / 'gpt_jax'


def enable_compilation_cache() -> None:
  """Makes JAX keep compiled programs on disk, so that the same command starts faster next time.

  JAX's own variables take precedence, see
  https://docs.jax.dev/en/latest/persistent_compilation_cache.html. If the folder can't be written,
  nothing is cached.
  """
  import jax

  config: Any = jax.config  # its attributes are not declared
  if not config.jax_enable_compilation_cache:
    return
  # A full disk or a folder that is gone is not worth a warning.
  warnings.filterwarnings('ignore', message='Error (reading|writing) persistent compilation cache')
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    path = folder() / 'xla'
    try:
      # JAX executes what lies there: it is for the user alone.
      path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
      return
    jax.config.update('jax_compilation_cache_dir', str(path))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', _WORTH_CACHING)
