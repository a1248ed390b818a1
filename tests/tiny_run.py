"""A run of train.py that is as small as can be."""

import pathlib

from gpt_jax import cli


def train(folder: pathlib.Path, text: str, *, block_size: int, steps: int) -> pathlib.Path:
  """The workdir of a run that knows the letters of `text`."""
  from gpt_jax import train as train_lib

  (folder / 'text.txt').write_text(text)
  (folder / 'mine.py').write_text(
    'from gpt_jax import config as c\n\n'
    'def get_config():\n'
    '  return c.Config(\n'
    f'    model=c.ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size={block_size},'
    ' pad_vocab_to=1),\n'
    f"    data=c.DataConfig(source='text:{folder}/text.txt', tokenizer='char',"
    f" cache_dir='{folder}/cache'),\n"
    f'    train=c.TrainConfig(steps={steps}, batch_size=8, eval_batches=1, checkpoint_every=1),\n'
    '    optimizer=c.OptimizerConfig(warmup_steps=0),\n'
    '  )\n'
  )
  values = train_lib.define_flags()
  argv = ['train', f'--config={folder}/mine.py', f'--workdir={folder}/run']
  cli.parse(values, argv, takes_config=True)
  train_lib.main(values)
  return folder / 'run'
