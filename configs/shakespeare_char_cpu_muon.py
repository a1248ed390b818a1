"""Tiny Shakespeare by characters on a laptop's CPU, in half the steps, with Muon.

    python -m gpt_jax.train --config=configs/shakespeare_char_cpu_muon.py

The model, text and batches of configs/shakespeare_char_cpu.py. The matrices of the blocks are
trained by Muon (Jordan 2024), all else by AdamW, with the same learning rates (Liu et al. 2025).
The decay is cautious (Chen et al. 2025); the learning rate falls over the last half of the steps.

Validation loss after 1000 steps, over 230,400 tokens (train.eval_batches=300), on one device, one
run: 1.726. After 500 (--config.train.steps=500 --config.optimizer.decay_steps=250), one run: 1.854.
AdamW in configs/shakespeare_char_cpu.py, whose learning rate is nanoGPT's: 1.909 after 2000 steps.
A step takes 1.5 times the processor time of one of those: its batch is small, and to make updates
orthogonal costs the same whatever the batch.

The learning rate hasn't been tuned for 1000 steps; for 100, 1.6e-2 and more was best.
docs/optimizer.md has more figures.
"""

import dataclasses
import pathlib
import runpy

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  same = runpy.run_path(str(pathlib.Path(__file__).with_name('shakespeare_char_cpu.py')))[
    'get_config'
  ]()
  return dataclasses.replace(
    same,
    train=dataclasses.replace(same.train, steps=1000),
    optimizer=dataclasses.replace(
      same.optimizer,
      kind='muon',
      learning_rate=1e-2,
      min_learning_rate=1e-3,
      warmup_steps=50,
      schedule='wsd',
      decay_steps=500,
      cautious=True,
    ),
  )
