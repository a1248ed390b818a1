"""Hand a model to Hugging Face: python -m gpt_jax.convert --model=runs/quickstart --output=mine

Writes a directory that `transformers` loads as it is: config.json, model.safetensors and, for
GPT-2's and Hugging Face's tokenizers, their files. Exit code 2: something to mend.
"""

import pathlib

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
  flags.DEFINE_string('output', None, 'The directory to write; must be new.', flag_values=values)
  return values


def main(values: flags.FlagValues) -> None:
  """Reads the model and writes it."""
  if not values.model or not values.output:
    raise errors.UserError('--model=PATH and --output=DIR are needed')
  output = pathlib.Path(values.output)
  if output.exists():
    raise errors.UserError(f'--output={output} is there already: name a new directory')

  from gpt_jax import loading  # slow to import: after the flags are known to be sound
  from gpt_jax.weights import huggingface

  model = loading.load(values.model, dtype='float32').model
  try:
    huggingface.write_model(output, model.config, model.params, model.tokenizer)
  except OSError as e:
    raise errors.UserError(f'--output={output} cannot be written ({e.strerror or e})') from e
  size = sum(path.stat().st_size for path in output.iterdir())
  print(f'wrote {output}: {size / 1e6:,.1f} MB')


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=False)
