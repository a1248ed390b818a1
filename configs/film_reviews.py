"""A decoder that learns to predict the next word of film reviews, on a laptop's CPU.

    python -m gpt_jax.train --config=configs/film_reviews.py
    python -m gpt_jax.sample --model=runs/film_reviews --prompt='this film is' --top_k=20

All 50,000 labelled reviews of IMDb, split by a hash of their text: 10 % for tests, 5 % of the
rest for validation. Lower-cased words that occur at least twice (68,171 with eos and unk);
536,173 chunks of whole sentences, one from each sentence on, of 10 to 100 words, packed in 97,666
rows of 400.

2,400 steps are 11.5 million words, 0.3 of an epoch. Two cores of an AMD EPYC took 57 minutes
beside other work (3,460 words/s, up to 4,530; jax 0.12): validation loss 4.829 on all 2.03M words
(on the 48,000 of each evaluation 4.833, and 5.040 at step 1,200). The talk that this follows
reports 5.074 after 5 epochs of 51 minutes on an M1, and a training loss of 5.95 after the first.

By GPT-2's tokens: --config.data.tokenizer=gpt2 --config.data.lowercase=false
--config.model.clusters= (not trained yet).
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
