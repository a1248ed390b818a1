"""The thin shell around every command: flags, --help, messages and exit codes; imports no JAX.

No other module knows how a flag is spelled: errors name arguments and config keys.
"""

import contextlib
import io
import logging
import os
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import flags

from gpt_jax import config as config_lib
from gpt_jax import errors, knobs, validation

FINISHED, USER_ERROR, STOPPED = 0, 2, 75
_KILLED_BY_SIGINT = 130


def run(
  main: Callable[..., None],
  flag_values: flags.FlagValues,
  *,
  doc: str,
  takes_config: bool = False,
  aliases: Mapping[str, str] | None = None,
) -> None:
  """Parses the command line, runs `main` and exits.

  Args:
    main: The command, called with `flag_values` and, if `takes_config`, the config. It ends early
      by `UserError` or `Stopped`.
    flag_values: Its flags.
    doc: Its documentation, the head of --help.
    takes_config: Whether it has `--config=FILE.py` and overrides such as `--config.a.b=v`.
    aliases: Config keys or arguments -> the flags that stand for them.
  """
  # Libraries report their progress through absl's logger; a command speaks for itself.
  logging.getLogger('absl').setLevel(logging.ERROR)
  if {'-h', '--help', '-help', '--helpfull'} & set(sys.argv[1:]):
    print(help_text(flag_values, doc=doc, takes_config=takes_config))
    sys.exit(FINISHED)
  try:
    main(*parse(flag_values, sys.argv, takes_config=takes_config))
  except errors.UserError as e:
    print(render(e, flag_values, aliases=aliases), file=sys.stderr)
    sys.exit(USER_ERROR)
  except errors.Stopped as e:
    print(e, file=sys.stderr)
    sys.exit(STOPPED)
  except KeyboardInterrupt:
    sys.exit(_KILLED_BY_SIGINT)


@contextlib.contextmanager
def output() -> Iterator[None]:
  """Makes standard output UTF-8, and ends quietly when its reader is gone."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(encoding='utf-8')  # whatever the locale: tokens hold any character
  try:
    yield
    sys.stdout.flush()
  except BrokenPipeError:
    # Python flushes once more at exit, and would complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def render(
  error: errors.UserError,
  flag_values: flags.FlagValues,
  *,
  aliases: Mapping[str, str] | None = None,
) -> str:
  """Returns the message of `error` with arguments and config keys spelled as flags."""

  def spell(name: str) -> str | None:
    key, equals, value = name.partition('=')
    key = (aliases or {}).get(key, key)
    known = [flag for flag in (key, f'config.{key}') if flag in flag_values]
    return f'--{known[0]}{equals}{value}' if known else None

  def line(single: errors.UserError) -> str:
    text = single.problem + ('; ' if single.fix else '') + single.fix
    parts = text.split('`')
    quoted = [spell(part) or f'`{part}`' for part in parts[1::2]]
    text = ''.join(a + b for a, b in zip(parts[::2], [*quoted, ''], strict=True))
    return f'{spell(single.key) or single.key}: {text}'

  if len(error.all) == 1:
    return f'error: {line(error)}'
  return '\n'.join([f'error: {len(error.all)} problems:', *(f'  {line(e)}' for e in error.all)])


def parse(flag_values: flags.FlagValues, argv: list[str], *, takes_config: bool) -> tuple[Any, ...]:
  """Parses `argv` (program first) into `flag_values`, which gets a flag for each config key.

  Returns:
    `flag_values` and, if `takes_config`, the validated config, whose file is executed once.

  Raises:
    UserError: Lists everything that is wrong with the flags and the config.
  """
  if takes_config:
    flags.DEFINE_string('config', None, 'Config file.', flag_values=flag_values)
    for key, kind in validation.TYPES.items():
      define = flags.DEFINE_boolean if kind is bool else flags.DEFINE_string
      define(f'config.{key}', None, '', flag_values=flag_values)
  valid, found = _without_wrong_types(flag_values, argv)
  try:
    rest = flag_values(valid, known_only=True)[1:]
  except (flags.Error, ValueError) as e:
    raise errors.UserError('command line', str(e), 'see --help') from e
  found = [_unexpected(arg, list(flag_values)) for arg in rest] + found
  if not takes_config:
    errors.raise_all(found)
    return (flag_values,)
  values = {key: flag_values[f'config.{key}'].value for key in validation.TYPES}
  given = {key: str(value) for key, value in values.items() if value is not None}
  config, more = validation.override(validation.load(_config_file(flag_values.config)), given)
  errors.raise_all(found + more + validation.problems(config))
  return flag_values, config


def _config_file(name: str | None) -> pathlib.Path:
  """Returns the config file that the command line names."""
  files = ', '.join(sorted(map(str, pathlib.Path('configs').glob('*.py')))) or 'none here'
  if not name:
    raise errors.UserError('--config=FILE.py', 'is missing', f'files in configs: {files}')
  if not pathlib.Path(name).is_file():
    raise errors.UserError(f'--config={name}', 'no such file', f'files in configs: {files}')
  return pathlib.Path(name)


def _without_wrong_types(
  flag_values: flags.FlagValues, argv: list[str]
) -> tuple[list[str], list[errors.UserError]]:
  """Splits off flags whose value has the wrong type, with an error for each."""
  valid, found = [], []
  kinds: dict[str, Any] = {kind.__name__: kind for kind in (int, float, bool)}
  for arg in argv:
    name, equals, value = arg.lstrip('-').partition('=')
    kind = None
    if equals and arg.startswith('-') and name in flag_values:
      kind = kinds.get(flag_values[name].parser.flag_type())
    try:
      if kind:
        knobs.parse(name, kind, value)
      valid.append(arg)
    except errors.UserError as e:
      found.append(e.at(name.removeprefix('config.')))
  return valid, found


def _unexpected(arg: str, names: list[str]) -> errors.UserError:
  if not arg.startswith('-'):
    return errors.UserError(arg, 'unexpected argument', 'flags are written --name=value')
  near = knobs.suggestion(arg.lstrip('-').partition('=')[0], names)
  return errors.UserError(arg, 'no such flag', near or 'see --help')


def help_text(flag_values: flags.FlagValues, *, doc: str, takes_config: bool) -> str:
  """Returns what --help prints: `doc`, the flags, and every config key with its default."""
  lines = [doc.strip(), '', 'Flags:']
  if takes_config:
    lines += _entry('--config', 'Config file, for example configs/quickstart.py.')
  for name in sorted(flag_values):
    flag = flag_values[name]
    default = '' if flag.default in (None, '') else f' (default: {flag.default})'
    lines += _entry(f'--{name}', f'{flag.help}{default}')
  if takes_config:
    lines += [
      '',
      'Config keys, as --config.KEY=VALUE (defaults; a config file has its own values):',
    ]
    for knob in knobs.knobs(config_lib.Config()):
      choices = knob.field.metadata['choices']
      allowed = f' One of {", ".join(choices)}.' if choices else ''
      default = f' (default: {knob.value})' if knob.value != '' else ''
      lines += _entry(knob.key, f'{knob.field.metadata["doc"]}{allowed}{default}')
  return '\n'.join(lines)


def _entry(name: str, text: str) -> list[str]:
  body = textwrap.wrap(text, width=70)
  head = f'  {name:<28}'
  return [f'{head if i == 0 else " " * len(head)}{line}' for i, line in enumerate(body)]
