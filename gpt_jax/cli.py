"""The thin shell around every command: flags, --help, messages and exit codes; imports no JAX.

No other module knows how a flag is spelled: errors name arguments and config keys.
"""

import contextlib
import json
import logging
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from gpt_jax import completion, cpu_memory, errors, knobs, shutdown, streams, validation
from gpt_jax import config as config_lib

FINISHED, USER_ERROR, STOPPED = 0, 2, 75
_KILLED_BY_SIGINT = 130
_CONFIGS = pathlib.Path(__file__).with_name('configs')  # in a checkout, a link to those beside
# Of a config, in the order of --help; '' has what is in none.
_SECTIONS = ('', 'model', 'data', 'train', 'optimizer', 'mesh', 'processes')
_MESH = ('data', 'fsdp', 'tensor')

# Of the flags of commands that load a model.
MODEL = (
  "A run's workdir or checkpoint, a directory of Hugging Face or OpenAI, gpt2 or hf:OWNER/NAME."
)
DTYPE = 'Type of the weights: auto, float32, bfloat16 or int8; smaller ones are faster.'


def run(
  main: Callable[..., None],
  flag_values: flags.FlagValues,
  *,
  doc: str,
  takes_config: bool = False,
  sections: tuple[str, ...] = _SECTIONS,
  words: Sequence[str] | None = None,
  reports: bool = False,
  aliases: Mapping[str, str] | None = None,
) -> None:
  """Parses the command line, runs `main` with `flag_values` and exits; `doc` is for --help.

  A command that `takes_config` has `--config=FILE.py` and overrides such as `--config.a.b=v`, and
  gets the config too, of which it uses `sections`; one with `words`, which completion offers, gets
  the arguments that are no flags. What one that `reports` prints is only about its work, which goes
  on if nobody reads it. `aliases` are config keys or arguments -> their flags.
  """
  # Libraries report their progress through absl's logger; a command speaks for itself.
  logging.getLogger('absl').setLevel(logging.ERROR)
  streams.take(reports=reports)
  with shutdown.ends_command():
    try:
      if sys.argv[1:2] == ['--complete']:
        _complete(flag_values, takes_config, words)
      elif {'-h', '--help', '-help', '--helpfull'} & set(sys.argv[1:]):
        print(help_text(flag_values, doc=doc, sections=sections if takes_config else None))
      else:
        cpu_memory.keep()
        has_words = words is not None
        main(*parse(flag_values, sys.argv, takes_config=takes_config, takes_words=has_words))
      if sys.stdout:
        sys.stdout.flush()
    except errors.UserError as e:
      print(render(e, flag_values, aliases=aliases), file=sys.stderr)
      sys.exit(USER_ERROR)
    except errors.Stopped as e:
      print(e, file=sys.stderr)
      sys.exit(STOPPED)
    except KeyboardInterrupt:
      if sys.stderr and sys.stderr.isatty():
        print(file=sys.stderr)  # the terminal has put ^C on the line
      sys.exit(_KILLED_BY_SIGINT)
    except MemoryError:
      print('error: out of memory: Python gets no more; use less at a time', file=sys.stderr)
      sys.exit(USER_ERROR)
    except ValueError as e:
      if 'jax' in sys.modules or 'JAX' not in str(e):  # else JAX refuses a variable when imported
        raise
      print(f'error: environment variable: {e}; change or unset it', file=sys.stderr)
      sys.exit(USER_ERROR)
    except BrokenPipeError:
      sys.exit(FINISHED)  # who reads has seen enough
    except OSError as e:
      if (error := errors.of_system(e)) is None:
        raise
      print(f'error: {error}', file=sys.stderr)
      sys.exit(USER_ERROR)
    finally:
      with contextlib.suppress(AttributeError, OSError):  # else Python tells of it when it exits
        sys.stdout.flush()


def _complete(values: flags.FlagValues, takes_config: bool, words: Sequence[str] | None) -> None:
  if takes_config:
    define_config(values)
  breaks, word = sys.argv[2:]
  found = completion.candidates(values, word, configs=_config_names(), words=words)
  completion.show(found, word, breaks)


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
    # Other backticks are of a text that is quoted.
    text = re.sub('`([a-z][^`]*)`', lambda found: spell(found[1]) or found[0], text)
    return f'{spell(single.key) or single.key}: {text}'

  if len(error.all) == 1:
    return f'error: {line(error)}'
  return '\n'.join([f'error: {len(error.all)} problems:', *(f'  {line(e)}' for e in error.all)])


def parse(
  flag_values: flags.FlagValues,
  argv: list[str],
  *,
  takes_config: bool,
  takes_words: bool = False,
) -> tuple[Any, ...]:
  """Parses `argv` (program first) into `flag_values`, which gets a flag for each config key.

  Returns `flag_values`; if `takes_config`, the validated config, whose file is executed once; if
  `takes_words`, the arguments that are no flags.
  Raises `UserError` with everything that is wrong with the flags and the config.
  """
  if takes_config:
    define_config(flag_values)
  valid, found = _without_wrong_types(flag_values, argv)
  try:
    rest = flag_values(valid, known_only=True)[1:]
  except (flags.Error, ValueError) as e:
    raise errors.UserError('command line', str(e), 'see --help') from e
  words = [arg for arg in rest if takes_words and not arg.startswith('-')]
  found = [_unexpected(arg, list(flag_values)) for arg in rest if arg not in words] + found
  last = (words,) if takes_words else ()
  if not takes_config:
    errors.raise_all(found)
    return (flag_values, *last)
  path = _config_file(flag_values.config or '')
  values = {key: flag_values[f'config.{key}'].value for key in validation.TYPES}
  given = {key: str(value) for key, value in values.items() if value is not None}
  config, more = validation.override(validation.load(path), given)
  errors.raise_all(found + more + validation.problems(config))
  return (flag_values, config, *last)


def define_config(flag_values: flags.FlagValues) -> None:
  """Defines --config and a flag for each key of a config."""
  flags.DEFINE_string('config', None, 'Config file.', flag_values=flag_values)
  for knob in knobs.knobs(config_lib.Config()):
    define = flags.DEFINE_boolean if knob.field.type is bool else flags.DEFINE_string
    define(f'config.{knob.key}', None, knob.field.metadata['doc'], flag_values=flag_values)


def _config_file(given: str) -> pathlib.Path:
  """Returns the file that --config names: a path, or the name of one of gpt_jax."""
  path, names = pathlib.Path(given), _config_names()
  if path.is_file():
    return path
  if given in names:
    return _CONFIGS / f'{given}.py'
  problem = 'is no file' if path.exists() else 'no such file'
  here = ', '.join(sorted(map(str, pathlib.Path('configs').glob('*.py'))))
  near = knobs.suggestion(given, names) if given else ''
  fix = near or (f'files in configs: {here}' if here else 'such as quickstart, of gpt_jax')
  raise errors.UserError(
    f'--config={given or "FILE.py"}', problem if given else 'must be given', fix
  )


def _config_names() -> list[str]:
  return sorted(path.stem for path in _CONFIGS.glob('*.py'))


def define_json(flag_values: flags.FlagValues) -> None:
  """Defines --json, which means the same for each command that has it."""
  doc = 'Print JSON alone, an object a line; all else goes to standard error.'
  flags.DEFINE_boolean('json', False, doc, flag_values=flag_values)


def show(
  flag_values: flags.FlagValues,
  records: Iterable[Mapping[str, Any]],
  text: str,
  *,
  both: bool = False,
) -> None:
  """Prints `text` or, with --json, each of `records` as a line of JSON.

  With `both`, `text` goes to standard error then: of what was waited for long.
  """
  for record in records if flag_values.json else ():
    print(json.dumps(record, ensure_ascii=False))
  if both or not flag_values.json:
    print(text, file=sys.stderr if flag_values.json else sys.stdout)


def define_mesh(flag_values: flags.FlagValues) -> None:
  """Defines flags of the axes of a mesh, such as --mesh.tensor, each 1 by default."""
  for knob in knobs.knobs(config_lib.MeshConfig()):
    if knob.key in _MESH:
      doc = knob.field.metadata['doc']
      flags.DEFINE_integer(f'mesh.{knob.key}', 1, doc, flag_values=flag_values)


def mesh(flag_values: flags.FlagValues) -> config_lib.MeshConfig | None:
  """Returns the mesh that flags describe; None if it is one device. Raises `UserError`."""
  axes: dict[str, Any] = {name: flag_values[f'mesh.{name}'].value for name in _MESH}
  given = config_lib.MeshConfig(**axes)
  errors.raise_all(
    [e.at(f'mesh.{e.key}') for knob in knobs.knobs(given) for e in knobs.problems(knob)]
  )
  return None if given == config_lib.MeshConfig(data=1) else given


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
      fix = f'write `json` > {value}' if name == 'json' else e.fix
      found.append(errors.UserError(name.removeprefix('config.'), e.problem, fix))
  return valid, found


def _unexpected(arg: str, names: list[str]) -> errors.UserError:
  if not arg.startswith('-'):
    return errors.UserError(arg, 'unexpected argument', 'flags are written --name=value')
  near = knobs.suggestion(arg.lstrip('-').partition('=')[0], names)
  return errors.UserError(arg, 'no such flag', near or 'see --help')


def help_text(flag_values: flags.FlagValues, *, doc: str, sections: tuple[str, ...] | None) -> str:
  """Returns what --help prints: `doc`, the flags, and the config keys of these sections.

  None is for a command without a config.
  """
  lines = [doc.strip(), '', 'Flags:']
  if sections is not None:
    lines += _entry('--config', f'Config file, or one of gpt_jax: {", ".join(_config_names())}.')
  for name in sorted(flag_values):
    flag = flag_values[name]
    default = '' if flag.default in (None, '', []) else f' (default: {flag.default})'
    lines += _entry(f'--{name}', f'{flag.help}{default}')
  if sections:
    lines += [
      '',
      'Config keys, as --config.KEY=VALUE (defaults; a config file has its own values).',
    ]
  elif sections is not None:
    lines += ['', 'Config keys, as --config.KEY=VALUE, are those of gpt_jax.train.']
  every, config = list(knobs.knobs(config_lib.Config())), config_lib.Config()
  for section in sections or ():
    doc = (getattr(config, section) if section else config).__doc__ or ''
    lines += ['', f'{section or "config"}: {doc.partition(chr(10))[0]}']
    for knob in every:
      if knob.key.rpartition('.')[0] == section:
        choices = knob.field.metadata['choices']
        allowed = f' One of {", ".join(choices)}.' if choices else ''
        default = f' (default: {knob.value})' if knob.value != '' else ''
        lines += _entry(knob.key, f'{knob.field.metadata["doc"]}{allowed}{default}')
  return '\n'.join(lines)


def _entry(name: str, text: str) -> list[str]:
  head = f'  {name:<27} '
  return textwrap.wrap(text, 100, initial_indent=head, subsequent_indent=' ' * 30)
