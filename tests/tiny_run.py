"""The smallest training run."""

import pathlib

from gpt_jax import config as config_lib


def train(folder: pathlib.Path, text: str, *, block_size: int, steps: int) -> pathlib.Path:
  """Returns the workdir of a run whose vocabulary is the characters of `text`."""
  from gpt_jax import train as train_lib

  (folder / 'text.txt').write_text(text)
  config = config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=1, n_head=2, n_embd=8, block_size=block_size, pad_vocab_to=1
    ),
    data=config_lib.DataConfig(
      source=f'text:{folder}/text.txt', tokenizer='char', cache_dir=str(folder / 'cache')
    ),
    train=config_lib.TrainConfig(steps=steps, batch_size=8, eval_batches=1, checkpoint_every=1),
    optimizer=config_lib.OptimizerConfig(warmup_steps=0),
  )
  train_lib.train(config, folder / 'run')
  return folder / 'run'
