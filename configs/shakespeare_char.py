"""Tiny Shakespeare by characters: nanoGPT's published setting for one GPU.

    python -m gpt_jax.train --config=configs/shakespeare_char.py

Every value is that of nanoGPT's train_shakespeare_char.py: 10.6 million parameters, the first 90 %
of the text for training, 65 characters. nanoGPT's README reports a validation loss of 1.4697 after
3 minutes on an A100; this config has not been run to its end here yet.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=6,
      n_head=6,
      n_embd=384,
      block_size=256,
      dropout=0.2,
      bias=False,
      pad_vocab_to=1,
      dtype='bfloat16',
    ),
    data=config_lib.DataConfig(source='tfds:tiny_shakespeare', tokenizer='char', val_fraction=0.1),
    train=config_lib.TrainConfig(
      steps=5000,
      batch_size=64,
      log_every=10,
      eval_every=250,
      eval_batches=200,
      checkpoint_every=5000,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=1e-3,
      min_learning_rate=1e-4,
      warmup_steps=100,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.99,
      clip=1.0,
    ),
  )
