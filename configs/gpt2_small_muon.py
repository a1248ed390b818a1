"""GPT-2 small with Muon: the model, text and batches of configs/gpt2_small.py.

    python -m gpt_jax.train --config=configs/gpt2_small_muon.py

The matrices of the blocks are trained by Muon (Jordan 2024), the embeddings, biases and LayerNorms
by AdamW, with the same learning rates (Liu et al. 2025). 14,000 steps are 0.7 of those of
configs/gpt2_small.py: a well-tuned AdamW needs 1.4 times as many for a model of this size (Wen et
al. 2025, "Fantastic Pretraining Optimizers and Where to Find Them"). Parameters, gradients and
moments take 1.65 GB. Making updates orthogonal takes 1.6 TFLOPs a step, 0.4 % of its work.

Not measured yet: any run of this size, and so the learning rate, which is twice that of
configs/gpt2_small.py. Measured on small models: configs/shakespeare_char_cpu_muon.py.
"""

import dataclasses
import pathlib
import runpy

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  same = runpy.run_path(str(pathlib.Path(__file__).with_name('gpt2_small.py')))['get_config']()
  return dataclasses.replace(
    same,
    train=dataclasses.replace(same.train, steps=14_000),
    optimizer=dataclasses.replace(
      same.optimizer, kind='muon', learning_rate=1.2e-3, min_learning_rate=1.2e-4
    ),
  )
