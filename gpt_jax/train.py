"""Train a GPT-2: python -m gpt_jax.train --config=configs/quickstart.py

Prints what will happen, trains, and leaves checkpoints, metrics.jsonl and loss.png in the workdir.
The same command again resumes. Exit codes: 0 finished, 2 something to mend, 75 stopped early with
its state saved (SIGTERM or Ctrl-C).
"""

import pathlib
from typing import Any

from absl import flags

from gpt_jax import cli


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  flag_values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'Where the run is kept; runs/CONFIG by default.', flag_values=flag_values
  )
  return flag_values


def main(flag_values: flags.FlagValues) -> None:
  """Trains as the flags say."""
  config_flag: Any = flag_values['config']
  name = pathlib.Path(config_flag.config_filename).stem
  path = flag_values.workdir or f'runs/{name}'

  from gpt_jax.training import (
    loop,
    workdir,
  )  # slow to import: after the flags are known to be sound

  loop.train(flag_values.config, workdir.Workdir(path))


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=True)
