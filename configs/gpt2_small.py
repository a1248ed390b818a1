"""GPT-2 small (124,439,808 parameters), a reproduction run of 10.5 billion tokens.

    python -m gpt_jax.train --config=configs/gpt2_small.py

Each step takes 0.5 million tokens (512 × 1024), in 16 micro-batches of 32 sequences over all
devices. Lower train.gradient_accumulation if there are more devices or more memory, raise it if
there are less; the result is the same except for rounding. Parameters, gradients and AdamW's
moments take 2.0 GB, which mesh.fsdp shards over devices.

The text is PG-19 (28,752 books), which TFDS downloads and prepares on first use; its validation and
test books are the last 0.5 %. For other text: --config.data.source=parquet:FOLDER and others;
README.md has the commands for ten billion tokens of FineWeb-Edu.

The peak learning rate is that of GPT-3 at this size (Brown et al. 2020, table 2.1). Measured so
far: the parameter count, the initial loss and its fall over the first steps; no run of this length
has been made yet.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=12,
      n_head=12,
      n_embd=768,
      block_size=1024,
      dtype='bfloat16',
    ),
    data=config_lib.DataConfig(source='tfds:pg19', tokenizer='gpt2', val_fraction=0.005),
    train=config_lib.TrainConfig(
      steps=20_000,
      batch_size=512,
      gradient_accumulation=16,
      log_every=10,
      eval_every=250,
      eval_batches=4,
      checkpoint_every=1000,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=0.0006,
      min_learning_rate=6e-05,
      warmup_steps=700,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.95,
      clip=1.0,
    ),
  )
