"""Tiny Shakespeare by characters, with spans left out: T5's objective on a laptop's CPU.

    python -m gpt_jax.train --config=configs/spans_shakespeare.py
    python -m gpt_jax.sample --model=runs/spans_shakespeare --temperature=0 \\
      --prompt='I pray y[MASK], come to [MASK] king'

1,000 steps took 304 s of the time of one core of a busy AMD EPYC (jax 0.10, compiling included);
minutes on two free cores weren't measured. Then 32.5 % of the characters of the validation split's
spans are right, each given those before it in its span and the spans before that, and 14.9 % if the
guess is always the space; the loss, of masks and eos too, is 1.500 (one run). Half of the steps
bring little: 19.1 % are right after 600, 25.8 % after 800.

Longer rows take longer to learn from: with 64 characters and batches of 32, 19.6 % were right after
400 steps, and with AdamW at 2e-3 instead of Muon 21.6 % after 1,000 (one run each). That AdamW had
19.5 % after 400 steps; with a token of its own for each mask, 18.4 % (one run each).
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      kind='encoder_decoder', n_layer=2, n_head=4, n_embd=128, block_size=32, pad_vocab_to=1
    ),
    data=config_lib.DataConfig(
      source='tfds:tiny_shakespeare', tokenizer='char', special_tokens='mask eos', val_fraction=0.1
    ),
    train=config_lib.TrainConfig(
      steps=1000,
      batch_size=64,
      log_every=10,
      eval_every=100,
      eval_batches=20,
      checkpoint_every=1000,
    ),
    optimizer=config_lib.OptimizerConfig(
      kind='muon',
      learning_rate=1e-2,
      min_learning_rate=1e-3,
      warmup_steps=50,
      schedule='wsd',
      decay_steps=500,
      weight_decay=0.1,
      b1=0.9,
      b2=0.99,
      clip=1.0,
      cautious=True,
    ),
    task='spans',
  )
