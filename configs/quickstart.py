"""A small GPT trained on the reference manual that comes with Python; nothing is downloaded.

    python -m gpt_jax.train --config=configs/quickstart.py
    python -m gpt_jax.sample --model=runs/quickstart

0.8 million parameters, 1000 steps of 2,048 characters. Two cores of an AMD EPYC take about two and
a half minutes and reach a validation loss of 1.45 nats per character (text of Python 3.11): words
and the layout of a reference manual, but no meaning yet.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=4,
      n_head=4,
      n_embd=128,
      block_size=128,
      pad_vocab_to=1,
    ),
    data=config_lib.DataConfig(
      source='builtin:python-reference', tokenizer='char', val_fraction=0.1
    ),
    train=config_lib.TrainConfig(
      steps=1000,
      batch_size=16,
      log_every=25,
      eval_every=250,
      eval_batches=10,
      checkpoint_every=500,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=2e-3,
      min_learning_rate=1e-4,
      warmup_steps=50,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.95,
      clip=1.0,
    ),
  )
