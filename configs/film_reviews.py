"""A decoder that learns to predict the next word of film reviews, on a laptop's CPU.

python -m gpt_jax.train --config=configs/film_reviews.py
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=2, n_head=4, n_embd=256, block_size=100, clusters='3072,16384'
    ),
    data=config_lib.DataConfig(
      source='tfds:imdb_reviews[train+test]',
      tokenizer='word',
      lowercase=True,
      min_frequency=2,
      label_field='label',
      chunks='sentences',
      sentence_end='.',
      min_length=10,
      max_length=100,
      overlap=True,
      row_length=400,
      split='document',
      test_fraction=0.1,
      val_fraction=0.05,
    ),
    train=config_lib.TrainConfig(
      steps=2400,
      batch_size=12,
      log_every=10,
      eval_every=300,
      eval_batches=10,
      checkpoint_every=300,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=1.5e-3,
      min_learning_rate=1e-4,
      warmup_steps=100,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.99,
      clip=1.0,
    ),
  )
