"""The benchmark of configs/film_reviews.py: a one-layer LSTM on the same reviews and vocabulary.

    python -m gpt_jax.train --config=configs/film_reviews_rnn.py
    python -m gpt_jax.plot runs/film_reviews runs/film_reviews_rnn

1,600 steps are 7.7 million words, 0.2 of an epoch: 50 minutes on two cores of an AMD EPYC beside
other work (2,600 words/s, up to 3,400; jax 0.12), to a validation loss of 5.048 on all 2.03M words.
The talk that this follows reports 5.089 after 4 epochs of 2 hours and 31 minutes on an M1. More
than two thirds of the arithmetic are the output layer's, which is 512 wide.
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
    train=dataclasses.replace(same.train, steps=1600, batch_size=24),
    optimizer=dataclasses.replace(same.optimizer, learning_rate=3e-3),
  )
