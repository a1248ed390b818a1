"""The thin shell around every command: flags, --help, messages and exit codes. No JAX in here."""

import contextlib
import difflib
import io
import logging
import os
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from gpt_jax import config as config_lib
from gpt_jax import errors, validation

FINISHED, USER_ERROR, STOPPED = 0, 2, 75
_KILLED_BY_SIGINT = 130

_EXAMPLES = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)(=.*)?$')


def run(
  main: Callable[[flags.FlagValues], None],
  flag_values: flags.FlagValues,
  *,
  doc: str,
  takes_config: bool,
) -> None:
  """Parses the command line, runs `main` and exits.

  Args:
    main: the command; it ends early by `UserError` or `Stopped`.
    flag_values: its flags.
    doc: the command's documentation, the head of --help.
    takes_config: whether it has `--config=FILE.py` and the overrides `--config.a.b=v` too.
  """
  # Libraries tell their progress through absl's logger; a command speaks for itself.
  logging.getLogger('absl').setLevel(logging.ERROR)
  if {'-h', '--help', '-help', '--helpfull'} & set(sys.argv[1:]):
    print(help_text(flag_values, doc=doc, takes_config=takes_config))
    sys.exit(FINISHED)
  try:
    parse(flag_values, sys.argv, takes_config=takes_config)
    main(flag_values)
  except errors.UserError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(USER_ERROR)
  except errors.Stopped as e:
    print(e, file=sys.stderr)
    sys.exit(STOPPED)
  except KeyboardInterrupt:
    sys.exit(_KILLED_BY_SIGINT)


@contextlib.contextmanager
def output() -> Iterator[None]:
  """A context in which standard output is UTF-8, and ends quietly when nobody reads it any more."""
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(encoding='utf-8')  # whatever the locale: tokens are any characters
  try:
    yield
    sys.stdout.flush()
  except BrokenPipeError:
    # Python flushes once more at its exit, which nobody shall hear of.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(flag_values: flags.FlagValues, argv: list[str], *, takes_config: bool) -> None:
  """Parses `argv` (program first) into `flag_values`; the config becomes `flag_values.config`.

  Raises:
    UserError: lists everything that is wrong with the flags or the config, all at once.
  """
  argv, found = _sound_flags(flag_values, argv)
  if takes_config:
    argv, more = _sound_overrides(argv, config_path(argv))
    found += more
  try:
    if takes_config:
      _define_config(flag_values, argv)
    rest = flag_values(argv, known_only=True)[1:]
  except flags.Error as e:
    raise errors.UserError(f'{e}; see --help') from e
  names = [name for name in flag_values if not name.startswith('config.')]
  found = [_unexpected(arg, names) for arg in rest] + found
  if takes_config:
    found += validation.problems(flag_values.config)
  validation.fail(found)


def _unexpected(arg: str, names: list[str]) -> str:
  if not arg.startswith('-'):
    return f'{arg}: unexpected; flags are written --name=value'
  near = difflib.get_close_matches(arg.lstrip('-').partition('=')[0], names, n=1)
  hint = f'did you mean --{near[0]}?' if near else 'see --help'
  return f'{arg}: no such flag; {hint}'


def _define_config(flag_values: flags.FlagValues, argv: list[str]) -> None:
  config_flags.DEFINE_config_file(
    'config', None, 'Config file.', flag_values=flag_values, sys_argv=argv
  )


def config_path(argv: list[str]) -> pathlib.Path:
  """The config file that `argv` names; raises `UserError` unless it is a file with a config."""
  named = [arg.split('=', 1)[1] for arg in argv if re.match('--?config=', arg)]
  at_hand = ', '.join(sorted(map(str, pathlib.Path('configs').glob('*.py')))) or 'none here'
  if not named:
    raise errors.UserError(f'--config=FILE.py is missing; files in configs: {at_hand}')
  path = pathlib.Path(named[-1])
  if not path.is_file():
    raise errors.UserError(f'config file {path} does not exist; files in configs: {at_hand}')
  try:
    values, loading = flags.FlagValues(), ['', f'--config={path}']
    _define_config(values, loading)
    values(loading)
    config = values.config
  except Exception as e:  # a config file is the user's program: whatever it raises is theirs
    last = str(e).strip().splitlines()[-1:] or ['']
    raise errors.UserError(f'config file {path} fails: {type(e).__name__}: {last[0]}') from e
  if not isinstance(config, config_lib.Config):
    raise errors.UserError(f'{path}: get_config() must return a gpt_jax.config.Config')
  return path


def _sound_flags(flag_values: flags.FlagValues, argv: list[str]) -> tuple[list[str], list[str]]:
  """`argv` without the flags of the wrong type, and a line on each of those."""
  sound, found = [], []
  for arg in argv:
    name, equals, value = arg.lstrip('-').partition('=')
    try:
      if equals and arg.startswith('-') and name in flag_values:
        flag_values[name].parser.parse(value)
      sound.append(arg)
    except (ValueError, TypeError):
      wanted = {kind.__name__: example for kind, example in _EXAMPLES.items()}
      found.append(f'--{name}: {value!r} must be {wanted[flag_values[name].parser.flag_type()]}')
  return sound, found


def _sound_overrides(argv: list[str], path: pathlib.Path) -> tuple[list[str], list[str]]:
  """`argv` without the overrides that can't be taken, and a line on each of those."""
  known = {knob.key for knob in config_lib.knobs(config_lib.Config())}
  sound, found = [], []
  for arg in argv:
    match = _OVERRIDE.match(arg)
    problem = None
    if match and match[1] not in known:
      problem = validation.unknown_key(match[1])
    elif match:
      problem = _type_problem(arg, match[1], path)
    if problem:
      found.append(problem)
    else:
      sound.append(arg)
  return sound, found


def _type_problem(arg: str, key: str, path: pathlib.Path) -> str | None:
  values, argv = flags.FlagValues(), ['', f'--config={path}', arg]
  _define_config(values, argv)
  try:
    values(argv)
  except (flags.Error, ValueError):
    if arg.lstrip('-').startswith('no'):
      return f'{key}: {arg} cannot be; write --config.{key}=VALUE'
    given, _, value = arg.partition('=')
    wanted: Any = {knob.key: knob.field.type for knob in config_lib.knobs(config_lib.Config())}[key]
    example = _EXAMPLES[wanted]
    return f'{key}: {value!r} must be {example}' if value else f'{key}: write {given}=VALUE'
  return None


def help_text(flag_values: flags.FlagValues, *, doc: str, takes_config: bool) -> str:
  """What --help prints: `doc`, the flags, and every config key with its default."""
  lines = [doc.strip(), '', 'Flags:']
  if takes_config:
    lines += _entry('--config', 'Config file, for example configs/quickstart.py.')
  for name in sorted(flag_values):
    flag = flag_values[name]
    default = '' if flag.default in (None, '') else f' (default: {flag.default})'
    lines += _entry(f'--{name}', f'{flag.help}{default}')
  if takes_config:
    lines += ['', 'Config keys, as --config.KEY=VALUE (a config file has its own defaults):']
    for knob in config_lib.knobs(config_lib.Config()):
      choices = knob.field.metadata['choices']
      allowed = f' One of {", ".join(choices)}.' if choices else ''
      default = f' (default: {knob.value})' if knob.value != '' else ''
      lines += _entry(knob.key, f'{knob.field.metadata["doc"]}{allowed}{default}')
  return '\n'.join(lines)


def _entry(name: str, text: str) -> list[str]:
  body = textwrap.wrap(text, width=70)
  head = f'  {name:<28}'
  return [f'{head if i == 0 else " " * len(head)}{line}' for i, line in enumerate(body)]
