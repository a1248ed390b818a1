"""Train a GPT-2: python -m gpt_jax.train --config=configs/quickstart.py

Prints what it will do, trains, and leaves checkpoints, metrics.jsonl and loss.png in the workdir.
The same command again resumes. Exit codes: 0 finished, 2 user error, 75 stopped early with its
state saved (SIGTERM or Ctrl-C; during a compilation, when it ends), 130 or 143 at once, by a second
one. The run goes on if nobody reads its output any more.

  python -m gpt_jax.train --config=quickstart --config.model.n_layer=6
  python -m gpt_jax.train --config=quickstart --workdir=runs/mine --config.data.source='text:*.txt'
"""

import os
import pathlib

from absl import flags

from gpt_jax import cli, errors, knobs, progress, shutdown, validation
from gpt_jax import config as config_lib


def define_flags() -> flags.FlagValues:
  """Returns the command's flags."""
  flag_values = flags.FlagValues()
  flags.DEFINE_string(
    'workdir', None, 'Folder of the run; runs/CONFIG by default.', flag_values=flag_values
  )
  return flag_values


def main(flag_values: flags.FlagValues, config: config_lib.Config) -> None:
  """Trains in the folder that the flags name."""
  if not knobs.is_utf8(flag_values.workdir or ''):
    raise errors.UserError('workdir', 'is not UTF-8', 'choose another')
  train(config, flag_values.workdir or f'runs/{pathlib.Path(flag_values.config).stem}')


def train(config: config_lib.Config, workdir: str | os.PathLike[str]) -> None:
  """Trains as `config` says in `workdir`, from its newest checkpoint if there is one.

  Raises:
    UserError: The config, the text, the devices or the folder doesn't allow it.
    Stopped: SIGTERM or SIGINT came; the state is saved.
  """
  validation.validate(config)
  with shutdown.Guard() as guard:
    guard.stop_after(config.train.max_minutes)
    _train(config, workdir, guard)


def _train(
  config: config_lib.Config, workdir: str | os.PathLike[str], guard: shutdown.Guard
) -> None:
  with progress.doing('starting'):
    # Slow to import, so only once the flags are known to be valid.
    from gpt_jax import oom, user_cache
    from gpt_jax.data import loader
    from gpt_jax.parallel import mesh as mesh_lib
    from gpt_jax.parallel import processes
    from gpt_jax.training import fit, lock, loop, metrics, program, report, trackers
    from gpt_jax.training import run as run_lib
    from gpt_jax.weights import saved_model

  with processes.joined(config), lock.locked(pathlib.Path(workdir)):
    guard.check()
    user_cache.enable_compilation_cache()
    run = run_lib.Run(workdir)
    run.check(config)
    trackers.check(config)
    run.find_intact()
    if run.is_finished(config):
      print(report.result(metrics.read(run.metrics), run))
      return
    mesh = mesh_lib.make_mesh(config)
    program.check_memory(config, mesh)
    starts_from = config.init_from if run.step is None else ''
    pretrained = saved_model.open_model(starts_from) if starts_from else None
    data = processes.in_turn(lambda: loader.open_data(config, check=guard.check))
    attention = config.model.attention
    config = program.resolve(config, data.tokenizer, data.classes, mesh)
    if pretrained:
      pretrained.check(config.model, data.tokenizer)
    run.start(config, data)
    built = program.build(config, mesh)
    report.summarize(built, data, run)
    guard.check()
    with oom.oom_as_user_error(lambda: fit.advice(built)):
      compiled = report.compile_program(built, kernels=run.kernels, attention=attention)
      fit.check(compiled)
      vote = processes.StopVote(guard)
      loop.Loop(compiled, data, run, vote.check).train(pretrained)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=True, reports=True)
