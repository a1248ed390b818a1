"""What a model was trained on and what it reached, as the Hub shows it: README.md of a model."""

import json
import pathlib
import shutil

from gpt_jax import atomic, knobs
from gpt_jax import config as config_lib
from gpt_jax.training import overview
from gpt_jax.weights import saved_model

# Keys that say where a run was computed, or what a reader of the card can't have.
_LOCAL = ('mesh.', 'processes.', 'data.cache_dir', 'data.processes', 'data.verify')


def write(folder: pathlib.Path, model: saved_model.SavedModel, *, name: str) -> None:
  """Writes README.md, and the curve of the losses, for an exported model of a run to `folder`.

  `name` is its title.
  """
  if model.run is None:
    return
  run = overview.read(model.run.path)
  config, (best, step) = run.config, run.best
  about = f'A GPT-2 of {config.model.n_layer} layers, width {config.model.n_embd} and context '
  about += f'{config.model.block_size}, trained by gpt_jax for '
  about += f'{model.step:,} steps of {config.train.batch_size * config.row_length:,} tokens.'
  measured = 'accuracy' if config.model.classes else 'loss (nats per token)'
  use = (
    f"import gpt_jax\n\nmodel = gpt_jax.load('hf:{name}')\nprint(model.generate(['The '])[0].text)"
  )
  parts = [
    '---\nlibrary_name: gpt_jax\npipeline_tag: text-generation\ntags: [gpt2, jax]\n---',
    f'# {name.rpartition("/")[-1]}',
    about,
    f'Best validation {measured}: {best}, at step {step}.' if best else '',
    '![losses](loss.png)' if model.run.plot.is_file() else '',
    f'```python\n{use}\n```',
    f'It differs from the defaults of gpt_jax in\n\n```json\n{_differences(config)}\n```',
  ]
  text = '\n\n'.join(part for part in parts if part)
  atomic.write_bytes(folder / 'README.md', f'{text}\n'.encode())
  if model.run.plot.is_file():
    shutil.copyfile(model.run.plot, folder / 'loss.png')


def _differences(config: config_lib.Config) -> str:
  default = {knob.key: knob.value for knob in knobs.knobs(config_lib.Config())}
  changed = {
    knob.key: knob.value
    for knob in knobs.knobs(config)
    if knob.value != default[knob.key] and not knob.key.startswith(_LOCAL)
  }
  return json.dumps(changed, indent=2, ensure_ascii=False)
