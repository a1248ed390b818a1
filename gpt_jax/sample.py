"""Let a model write: python -m gpt_jax.sample --model=runs/quickstart --prompt="The "

Prints each sample, the prompt included, to standard output. The same prompt and seed give the same
text. Exit code 2: something to mend.
"""

import sys

from absl import flags

from gpt_jax import cli, errors


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  values = flags.FlagValues()
  flags.DEFINE_string(
    'model',
    None,
    "A run's workdir, one checkpoint in it, or a model directory of Hugging Face.",
    flag_values=values,
  )
  flags.DEFINE_string(
    'prompt', '', 'What the text begins with; empty: the start of a text.', flag_values=values
  )
  flags.DEFINE_integer('num_samples', 1, 'Texts to write, at least 1.', flag_values=values)
  flags.DEFINE_integer(
    'max_new_tokens', 500, 'Tokens to add, at least 1; the context slides.', flag_values=values
  )
  flags.DEFINE_float(
    'temperature', 0.8, 'Below 1 is bolder, above 1 wilder; 0: the likeliest.', flag_values=values
  )
  flags.DEFINE_integer(
    'top_k', 200, 'Draw from the k likeliest tokens only; 0: from all.', flag_values=values
  )
  flags.DEFINE_integer('seed', 0, 'Seed of the draws, 0 to 2**32 - 1.', flag_values=values)
  return values


def main(values: flags.FlagValues) -> None:
  """Loads the model and prints its samples."""
  if not values.model:
    raise errors.UserError('--model=PATH is missing: the workdir of a run, as runs/quickstart')
  if values.num_samples < 1:
    raise errors.UserError(f'--num_samples: {values.num_samples} must be at least 1')

  from gpt_jax import loading  # slow to import: after the flags are known to be sound

  loaded = loading.load(values.model)
  step = '' if loaded.step is None else f', step {loaded.step}'
  print(f'{values.model}{step}', file=sys.stderr)
  samples = loaded.model.generate(
    [values.prompt] * values.num_samples,
    max_new_tokens=values.max_new_tokens,
    temperature=values.temperature,
    top_k=values.top_k,
    seed=values.seed,
  )
  for i, sample in enumerate(samples):
    if i:
      print('-' * 40)
    print(values.prompt + (sample.text or ''))


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=False)
