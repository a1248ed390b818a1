"""Fine-tuning of GPT-2 on tiny Shakespeare: nanoGPT's config/finetune_shakespeare.py.

    pip install 'gpt_jax[hub]'
    python -m gpt_jax.train --config=configs/finetune_shakespeare.py

As in nanoGPT: 20 steps of 32,768 tokens in 32 micro-batches (two epochs), a constant learning rate
of 3e-5, the first 90 % of the text for training. Unlike here, nanoGPT starts from gpt2-xl (to do
the same, give --config.init_from=gpt2-xl and the sizes of configs/gpt2_xl.py), evaluates on
40 random windows instead of 32 spread over the last 10 %, and saves the last step only if it is the
best.

With adapters (LoRA), which train 1.2 of 125.6 million parameters, and ten times the learning rate:

    --config.model.lora_rank=8 --config.optimizer.learning_rate=3e-4

In float32 on a CPU, a step takes 4.8 GiB of memory, or 3.4 GiB with adapters (as XLA reports for
one sequence at a time): 950 MiB of optimizer state become 9 MiB.

The weights of GPT-2 have not been fine-tuned here yet, but a smaller model has: 4 layers, width 128
and context 256, trained for 250 steps of 2,048 tokens of IMDb reviews (validation loss 6.19 there),
exported by gpt_jax.convert, and fine-tuned from there for one epoch of tiny Shakespeare (148 steps
of 8 of the 1,189 blocks). Validation loss, 8.630 before fine-tuning:

    all parameters, learning rate 5e-4            5.432
    adapters of rank 8, learning rate 5e-3        7.744
    adapters of rank 8, learning rate 1e-3        7.735

by --config.init_from=exported --config.model.n_layer=4 --config.model.n_head=4
--config.model.n_embd=128 --config.model.block_size=256 --config.model.dtype=float32
--config.data.chunks=partition --config.train.batch_size=8 --config.train.gradient_accumulation=1
--config.train.steps=148 --config.train.eval_every=50 --config.train.eval_batches=16
--config.mesh.cpu_devices=2, one run each. Why adapters end so much higher has not been
investigated; with them, the embedding, which is also the output layer, stays that of the reviews.
"""

from gpt_jax import config as config_lib


def get_config() -> config_lib.Config:
  return config_lib.Config(
    model=config_lib.ModelConfig(
      n_layer=12,
      n_head=12,
      n_embd=768,
      block_size=1024,
      dropout=0.0,
      dtype='bfloat16',
    ),
    data=config_lib.DataConfig(source='tfds:tiny_shakespeare', tokenizer='gpt2', val_fraction=0.1),
    train=config_lib.TrainConfig(
      steps=20,
      batch_size=32,
      gradient_accumulation=32,
      log_every=1,
      eval_every=5,
      eval_batches=1,
      checkpoint_every=20,
    ),
    optimizer=config_lib.OptimizerConfig(
      learning_rate=3e-5,
      min_learning_rate=3e-5,
      warmup_steps=0,
      schedule='constant',
      weight_decay=0.1,
      b1=0.9,
      b2=0.95,
      clip=1.0,
    ),
    init_from='gpt2',
  )
