"""All commands as one: `gpt-jax train …` is `python -m gpt_jax.train …`."""

import pathlib
import platform
import re
import runpy
import sys

import gpt_jax
from gpt_jax import completion, errors, knobs

_COMMAND = re.compile(r'"""(.+): python -m gpt_jax\.(\w+)')  # the first line of each


def commands() -> dict[str, str]:
  """Returns what each command does by its name, and imports none of them."""
  files = sorted(pathlib.Path(__file__).parent.glob('*.py'))
  heads = (_COMMAND.match(path.read_text('utf-8')) for path in files)
  return {head[2]: head[1] for head in heads if head}


def main() -> None:
  """Runs the command that the first argument names; without one, prints what there is."""
  name, *rest = sys.argv[1:] or ['--help']
  found = commands()
  if name == '--complete':  # what a shell asks: its word breaks, and the line up to the cursor
    breaks, line = rest
    name, *before, word = ['', *line.split()[1:], *[''] * line.endswith(' ')]
    if not before:
      every = (*found, *completion.SCRIPTS, '--help', '--version')
      completion.show([f'{each} ' for each in every], word, breaks)
      return
    name, rest = before[0], ['--complete', breaks, word]
  if name in found:
    sys.argv = [f'gpt-jax {name}', *rest]
    runpy.run_module(f'gpt_jax.{name}', run_name='__main__', alter_sys=True)
  elif name == '--version':
    import importlib.metadata  # slow, for a shell that completes

    jax = importlib.metadata.version('jax')
    print(f'gpt_jax {gpt_jax.__version__}, jax {jax}, Python {platform.python_version()}')
  elif name in completion.SCRIPTS:
    print(completion.SCRIPTS[name])
  elif name in ('-h', '--help', 'help'):
    print('Usage: gpt-jax COMMAND …, or python -m gpt_jax.COMMAND …\n')
    print('\n'.join(f'  {name:<13}{does}' for name, does in found.items()))
    print('\ngpt-jax COMMAND --help prints what a command takes, gpt-jax --version the versions.')
    print('eval "$(gpt-jax --completion)" in ~/.bashrc or ~/.zshrc lets Tab complete all that;')
    print('for fish: gpt-jax --completion=fish > ~/.config/fish/completions/gpt-jax.fish')
  else:
    error = errors.UserError(
      name, 'no such command', knobs.suggestion(name, (*found, *completion.SCRIPTS))
    )
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
