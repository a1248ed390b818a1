"""GPT-2 xl (1,557,611,200 parameters), a reproduction run of 10.5 billion tokens.

    python -m gpt_jax.train --config=configs/gpt2_xl.py

The smallest slice of TPUs that it fits is a v5e-8: each step takes 0.5 million tokens (512 × 1024)
in 8 micro-batches of 64 sequences, 8 a device. Compiled for that slice (not run), a device needs
7.7 of its 15.75 GiB, 2.2 of them for parameters and AdamW's moments, which mesh.fsdp shards; XLA
estimates 12.3 s of computation a step, half of it for attention. mesh.fsdp and
train.gradient_accumulation are for 8 devices: on one GPU of 80 GB set them to 1 and 64.

The text, the learning rate and what has been measured are described in configs/gpt2_small.py.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=48,
      n_head=25,
      n_embd=1600,
      block_size=1024,
      dtype='bfloat16',
      scan_layers=True,
      remat=True,
    ),
    data=config_lib.DataConfig(source='tfds:pg19', tokenizer='gpt2', val_fraction=0.005),
    train=config_lib.TrainConfig(
      steps=20_000,
      batch_size=512,
      gradient_accumulation=8,
      log_every=10,
      eval_every=250,
      eval_batches=4,
      checkpoint_every=1000,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=0.0002,
      min_learning_rate=2e-05,
      warmup_steps=700,
      schedule='cosine',
      weight_decay=0.1,
      b1=0.9,
      b2=0.95,
      clip=1.0,
    ),
    mesh=config_lib.MeshConfig(fsdp=8),
  )
