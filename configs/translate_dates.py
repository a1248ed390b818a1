"""Dates, spoken in many forms, to ISO 8601: an encoder–decoder by characters, on a laptop's CPU.

    python -m gpt_jax.train --config=configs/translate_dates.py
    python -m gpt_jax.sample --model=runs/translate_dates --prompt='the third of May 2021'

The source makes 20,000 pairs of a date, written in one of eleven ways, and its ISO form; no date
of the 600 held-out pairs is in them. All 600 are right after 1,500 steps (one run); 43.6 % after
500, 95.7 % after 1,000. That took 345 s of the time of one core of a busy AMD EPYC (jax 0.10,
compiling included); minutes on two free cores weren't measured.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      kind='encoder_decoder', n_layer=2, n_head=4, n_embd=128, block_size=64, pad_vocab_to=1
    ),
    data=config_lib.DataConfig(
      source='builtin:dates',
      template='{prompt}',
      tokenizer='char',
      special_tokens='eos',
      split='given',
    ),
    train=config_lib.TrainConfig(
      steps=1500,
      batch_size=32,
      log_every=10,
      eval_every=250,
      eval_batches=19,
      checkpoint_every=1500,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=2e-3,
      min_learning_rate=1e-4,
      warmup_steps=100,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.98,
      clip=1.0,
    ),
    task='translate',
  )
