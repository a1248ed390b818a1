"""Tiny Shakespeare by characters: nanoGPT's published setting for a laptop's CPU.

    python -m gpt_jax.train --config=configs/shakespeare_char_cpu.py

Every value is that of the CPU command in nanoGPT's README: 0.8 million parameters, the first 90 %
of the text for training, 65 characters. The whole process takes 80 s on two cores of an AMD EPYC
(35 to 40 ms per step). Validation loss after 2000 steps, over 230,400 tokens
(train.eval_batches=300), on two simulated devices, for seeds 0 to 5: 1.921, 1.900, 1.901, 1.907,
1.912, 1.911; of nanoGPT itself, measured the same way for three seeds: 1.911, 1.891, 1.905.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=4,
      n_head=4,
      n_embd=128,
      block_size=64,
      dropout=0.0,
      bias=False,
      pad_vocab_to=1,
    ),
    data=config_lib.DataConfig(source='tfds:tiny_shakespeare', tokenizer='char', val_fraction=0.1),
    train=config_lib.TrainConfig(
      steps=2000,
      batch_size=12,
      log_every=10,
      eval_every=250,
      eval_batches=20,
      checkpoint_every=1000,
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
