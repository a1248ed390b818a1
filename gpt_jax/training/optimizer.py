"""AdamW with a warm-up and a schedule, as GPT-2 reproductions use it."""

import jax
import optax

from gpt_jax import config as config_lib


def make_schedule(optimizer: config_lib.OptimizerConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step (0-based) in a run of `steps` steps.

  Linear warm-up from peak / (warmup_steps + 1), so that the first step already learns; then
  `cosine` (Loshchilov & Hutter 2017) or `linear` down to the minimum at `steps`, `constant`, or
  `wsd` (warm-up, stable, decay; Hu et al. 2024).
  """
  peak, floor, warmup = optimizer.learning_rate, optimizer.min_learning_rate, optimizer.warmup_steps
  rest = max(steps - warmup, 1)
  warm = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
  match optimizer.schedule:
    case 'cosine':
      body = optax.cosine_decay_schedule(peak, rest, alpha=floor / peak)
    case 'linear':
      body = optax.linear_schedule(peak, floor, rest)
    case 'constant':
      body = optax.constant_schedule(peak)
    case 'wsd':
      decay = optimizer.decay_steps
      fall = optax.linear_schedule(peak, floor, decay)
      body = optax.join_schedules([optax.constant_schedule(peak), fall], [rest - decay])
    case other:
      raise ValueError(other)
  return optax.join_schedules([warm, body], [warmup])


def make_optimizer(
  optimizer: config_lib.OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Returns clipping by global norm if `clip` > 0, then AdamW; matrices and embeddings decay.

  What it makes of parameters and gradients with norms up to 1e18 is finite in float32: moments are
  means of gradients and of squares up to 1e36, so that no parameter moves by more than 1e18 / eps
  = 1e26 times the learning rate, which `config.OptimizerConfig` limits, as it does the decay.
  """
  clip = optax.clip_by_global_norm(optimizer.clip) if optimizer.clip > 0 else optax.identity()
  adamw = optax.adamw(
    schedule,
    b1=optimizer.b1,
    b2=optimizer.b2,
    weight_decay=optimizer.weight_decay,
    mask=decayed,
  )
  return optax.chain(clip, adamw)


def decayed(params: optax.Params) -> optax.Params:
  """Returns a tree: True for each matrix and embedding, False for each bias and LayerNorm scale."""
  # By name, not by rank: a bias of scanned layers has two axes.
  matrices = ('kernel', 'embedding', 'lm_head', 'lora_a', 'lora_b')
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in matrices, params)
