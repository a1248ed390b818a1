"""Tiny Shakespeare by characters, with spans left out: T5's objective on a laptop's CPU.

    python -m gpt_jax.train --config=configs/spans_shakespeare.py
    python -m gpt_jax.sample --model=runs/spans_shakespeare --temperature=0 \
      --prompt='O Romeo, [MASK]! where[MASK]ore art thou'

TODO
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      kind='encoder_decoder', n_layer=2, n_head=4, n_embd=128, block_size=64, pad_vocab_to=1
    ),
    data=config_lib.DataConfig(
      source='tfds:tiny_shakespeare', tokenizer='char', special_tokens='mask eos', val_fraction=0.1
    ),
    train=config_lib.TrainConfig(
      steps=2400,
      batch_size=16,
      log_every=10,
      eval_every=400,
      eval_batches=40,
      checkpoint_every=2400,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=2e-3,
      min_learning_rate=2e-4,
      warmup_steps=100,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.99,
      clip=1.0,
    ),
    task='spans',
  )
