"""The benchmark of configs/film_reviews.py: a one-layer LSTM on the same reviews and vocabulary.

python -m gpt_jax.train --config=configs/film_reviews_rnn.py
python -m gpt_jax.plot runs/film_reviews runs/film_reviews_rnn
"""

import dataclasses
import pathlib
import runpy

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  same = runpy.run_path(str(pathlib.Path(__file__).with_name('film_reviews.py')))['get_config']()
  model = config_lib.ModelConfig(
    kind='lstm',
    n_layer=1,
    n_embd=256,
    lstm_width=512,
    block_size=100,
    clusters=same.model.clusters,
    tie_embeddings=False,
  )
  return dataclasses.replace(
    same,
    model=model,
    data=dataclasses.replace(same.data, row_length=200),
    train=dataclasses.replace(same.train, batch_size=24),
  )
