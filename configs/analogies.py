"""Analogies of two letters: what a hidden rule makes of them is only to be seen in examples.

    python -m gpt_jax.train --config=configs/analogies.py
    python -m gpt_jax.evaluate --model=runs/analogies --data=examples:builtin:analogies \\
      --shots=0,1,2,4,8,16,32 --batch_size=100 --picture=shots.png

A conversation has up to 33 examples of one rule, such as Qd>dQ. 0.5 million parameters, a token a
byte, from random parameters; 216 s of the time of one busy core, preparing the text included
(jax 0.10). Exactly right, of 600 held-out prompts: 2 % without a shot, 63 % with one, 70 % with 16,
66 % with 32 (one run, validation loss 0.690, still falling). docs/instructions.md has
the kinds: a cipher drawn for each conversation isn't learned at all.

Harder ones were tried first: of three letters a to h, with rules such as sort and rotate,
this model saw from 32 shots only how long a response is (after 750 steps, learning rate 1e-2); of
two small letters it mixed up the first and the last (500 steps). A capital marks the first.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    task='instruct',
    model=config_lib.ModelConfig(
      n_layer=4,
      n_head=4,
      n_embd=96,
      block_size=208,
      dropout=0.0,
      bias=False,
      pad_vocab_to=1,
    ),
    data=config_lib.DataConfig(
      source='builtin:analogies',
      template='{prompt}>',
      tokenizer='byte',
      split='given',
      row_length=208,
    ),
    train=config_lib.TrainConfig(
      steps=800,
      batch_size=8,
      log_every=10,
      eval_every=200,
      eval_batches=13,
      checkpoint_every=200,
    ),
    optimizer=config_lib.OptimizerConfig(
      kind='muon',
      learning_rate=5e-3,
      min_learning_rate=1e-4,
      warmup_steps=50,
      schedule='wsd',
      decay_steps=400,
      cautious=True,
      weight_decay=0.1,
      b1=0.9,
      b2=0.99,
      clip=1.0,
    ),
  )
