"""What a shell offers for a word of a command line, and the scripts by which it asks; no JAX.

A word that is whole ends with a space.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from absl import flags

from gpt_jax import config as config_lib
from gpt_jax import knobs

_BASH = r"""[[ -z ${ZSH_VERSION-} ]] || { autoload -Uz compinit bashcompinit && compinit && bashcompinit; }
_gpt_jax() {
  local IFS=$'\n'
  COMPREPLY=($("$1" --complete "${COMP_WORDBREAKS-}" "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
}
complete -o nospace -F _gpt_jax gpt-jax"""  # noqa: E501
_FISH = 'complete -c gpt-jax -f -a \'(gpt-jax --complete "" (commandline -cp) | string trim)\''
SCRIPTS = {f'--completion={shell}': _BASH for shell in ('bash', 'zsh')}
SCRIPTS |= {'--completion': _BASH, '--completion=fish': _FISH}

# What the documentation of a flag says if its value, or what follows a colon in it, is a path.
_PATH, _SPEC = re.compile(r'\b([Ff]ile|[Ff]older|directory|workdir)\b'), re.compile(':[A-Z]{4,}')
_UNQUOTED = re.compile(r'[\w./@%+=:,-]+')  # names that mean the same to each shell


def show(candidates: Iterable[str], word: str, breaks: str) -> None:
  """Prints the candidates for `word`; bash replaces only what follows the last of its `breaks`."""
  begin = 1 + max((word.rfind(character) for character in breaks), default=-1)
  for candidate in sorted({each for each in candidates if each.startswith(word)}):
    print(candidate[begin:])


def candidates(
  flag_values: flags.FlagValues, word: str, *, configs: Sequence[str], words: Sequence[str] | None
) -> Iterator[str]:
  """Yields what `word` may become: flags (up to the next dot), values and, unless None, `words`."""
  name, equals, value = word.partition('=')
  if equals and name.startswith('--') and name[2:] in flag_values:
    yield from (f'{name}={each}' for each in _values(flag_values[name[2:]], value, configs))
  elif words is not None and not word.startswith('-'):
    yield from (f'{each} ' for each in words)
    yield from _paths('', word)
  if not equals:
    yield '--help '
    for flag in (f'--{each}' for each in flag_values if f'--{each}'.startswith(word)):
      head, dot, _ = flag[len(word) :].partition('.')
      is_switch = flag_values[flag[2:]].boolean and not flag.startswith('--config.')
      yield word + head + dot if dot else flag + (' ' if is_switch else '=')


def _values(flag: flags.Flag, value: str, configs: Sequence[str]) -> Iterator[str]:
  by_key = {
    f'config.{k.key}': k.field.metadata['choices'] for k in knobs.knobs(config_lib.Config())
  }
  scheme, colon, path = value.rpartition(':')
  if choices := ('true', 'false') if flag.boolean else by_key.get(flag.name):
    yield from (f'{choice} ' for choice in choices)
  elif flag.name == 'config':
    yield from (f'{name} ' for name in configs)
    yield from (each for each in _paths('', value) if each.endswith(('/', '.py ')))
  elif _PATH.search(flag.help):
    yield from _paths('', value)
  elif colon and _SPEC.search(flag.help):
    yield from _paths(scheme + colon, path)


def _paths(before: str, path: str) -> Iterator[str]:
  for found in glob.iglob(glob.escape(path) + '*'):
    if _UNQUOTED.fullmatch(found):
      yield before + found + ('/' if os.path.isdir(found) else ' ')
