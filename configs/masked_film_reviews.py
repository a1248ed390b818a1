"""Words of film reviews, guessed from both sides: BERT's objective on a laptop's CPU.

    python -m gpt_jax.train --config=configs/masked_film_reviews.py
    python -m gpt_jax.inspect --model=runs/masked_film_reviews --fill='this film is [MASK] .'

The reviews of configs/film_reviews.py, with the words that occur at least 20 times. Too short to be
of use: after 400 steps, about 5 minutes on two cores, 5.7 % of the masked words of the validation
split are guessed; the most frequent word is right for 5.0 % (one run). Muon with a peak learning
rate of 1e-2 was no better after its first 400 of 1,200 steps.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(kind='encoder', n_layer=2, n_head=4, n_embd=128, block_size=100),
    data=config_lib.DataConfig(
      source='tfds:imdb_reviews[train+test]',
      tokenizer='word',
      special_tokens='mask',
      lowercase=True,
      min_frequency=20,
      label_field='label',
      chunks='packed',
      row_length=400,
      split='document',
      test_fraction=0.1,
      val_fraction=0.05,
    ),
    train=config_lib.TrainConfig(
      steps=400,
      batch_size=12,
      log_every=10,
      eval_every=100,
      eval_batches=10,
      checkpoint_every=400,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=2e-3,
      min_learning_rate=1e-4,
      warmup_steps=50,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.99,
      clip=1.0,
    ),
    task='masked',
  )
