"""Measure speed: python -m gpt_jax.bench MODE --config=configs/gpt2_small.py

MODE is train (a step's time, tokens/s, MFU, memory), decode (the time to the
first token, tokens/s after it), data (batches from a token store), startup (a process to its first
step) or matmul (the products of a step). Tokens are random: no data set is needed. Each figure is
the median of several repetitions after a warm-up, with the least and the most. --peer measures
another program in turn with gpt_jax, each in processes of its own.
"""

import dataclasses
import os
from typing import Any

from absl import flags

from gpt_jax import cli, errors, knobs
from gpt_jax import config as config_lib
from gpt_jax.benchmarks import options as options_lib

_VOCABULARY = {'char': 65, 'byte': 256}  # tiny Shakespeare's; others get GPT-2's size


def define_flags() -> flags.FlagValues:
  """Returns the command's flags, one for each option."""
  values = flags.FlagValues()
  define: dict[Any, Any] = {int: flags.DEFINE_integer, bool: flags.DEFINE_boolean}
  for knob in knobs.knobs(options_lib.Options()):
    doc = knob.field.metadata['doc']
    define.get(knob.field.type, flags.DEFINE_string)(knob.key, knob.value, doc, flag_values=values)
  cli.define_json(values)
  return values


def main(values: flags.FlagValues, config: config_lib.Config, words: list[str]) -> None:
  """Measures, prints a line for each figure, and JSON if asked to."""
  given: Any = {knob.key: values[knob.key].value for knob in knobs.knobs(options_lib.Options())}
  options = options_lib.Options(**given)
  mode = ' '.join(words)
  errors.raise_all(list(options_lib.problems(mode, config, options)))
  size = config.model.vocab_size or _VOCABULARY.get(config.data.tokenizer, 50257)
  config = knobs.replace(config, {'model.vocab_size': size})
  load = os.getloadavg()[0]
  from gpt_jax import oom  # slow, so after the checks
  from gpt_jax.benchmarks import figures, processes

  with oom.oom_as_user_error('lower `train.batch_size` or `rows`'):
    if options.peer:
      found = processes.compare(mode, config, options)
    else:
      found = processes.measure(f'{mode}.measure', config, options)
    machine = figures.machine(config.mesh) | {'load': round(load, 2)}
    model = f'{config.model.n_layer} layers, width {config.model.n_embd}'
    step = f'{config.model.dtype}, {config.train.batch_size} × {config.row_length} tokens a step'
    lines = [', '.join(f'{name} {value}' for name, value in machine.items())]
    lines.append(f'{mode}, {values.config}: {model}' + (f', {step}' if mode != 'decode' else ''))
    lines.append(figures.table(found))
  about = {'mode': mode, 'machine': machine, 'options': dataclasses.asdict(options)}
  about |= {'config': dataclasses.asdict(config)}
  about |= {'figures': {each.name: each.summary() for each in found}}
  cli.show(values, [about], '\n'.join(lines), both=True)


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=True, words=options_lib.MODES)
