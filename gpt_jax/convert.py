"""Export a model to Hugging Face: python -m gpt_jax.convert --model=runs/quickstart --output=mine

Writes a directory that `transformers` loads as it is: config.json, model.safetensors, for the
tokenizers of GPT-2 and Hugging Face their files and, of a run, README.md with what it was trained
on and what it reached. --push uploads it. Exit code 2: user error.
"""

import pathlib

from absl import flags

from gpt_jax import cli, errors, progress


def define_flags() -> flags.FlagValues:
  values = flags.FlagValues()
  flags.DEFINE_string('model', None, cli.MODEL, flag_values=values)
  flags.DEFINE_string('output', None, 'The directory to write; must be new.', flag_values=values)
  doc = 'Repository OWNER/NAME of the Hugging Face Hub to upload it to.'
  flags.DEFINE_string('push', None, doc, flag_values=values)
  return values


def main(values: flags.FlagValues) -> None:
  missing = [name for name in ('model', 'output') if not values[name].value]
  errors.raise_all([errors.UserError(name, 'must be given') for name in missing])
  output = pathlib.Path(values.output)
  if output.exists():
    raise errors.UserError('output', f'{output} exists already', 'name a new directory')

  with progress.doing('converting'):
    import jax  # slow, so only once the flags are known to be valid

    from gpt_jax import models
    from gpt_jax.downstream import model_card
    from gpt_jax.parallel import mesh
    from gpt_jax.weights import hub, huggingface, saved_model

    model = saved_model.open_model(values.model)
    for key in ('kind', 'classes', 'clusters'):
      if (value := getattr(model.config, key)) not in ('gpt', ''):
        problem = f'{values.model} has {key}={value}, which GPT-2 does not have'
        raise errors.UserError('model', problem, 'convert another')
    sharding = jax.sharding.SingleDeviceSharding(mesh.find_devices()[0])
    params = model.load(models.abstract_params(model.config, sharding))
    huggingface.write_model(output, model.config, params, model.tokenizer)
    model_card.write(output, model, name=values.push or output.name)
  size = sum(path.stat().st_size for path in output.iterdir())
  print(f'wrote {output}: {size / 1e6:,.1f} MB', flush=True)
  if values.push:
    print(f'uploaded it to {hub.upload(output, values.push)}')


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__)
