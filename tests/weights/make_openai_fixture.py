"""Writes fixtures/openai_tiny: a GPT-2 as OpenAI publishes it, from TensorFlow, and its logits.

Run by hand, where TensorFlow is; no test needs it. The logits are computed here in NumPy and
float64, by the formulas of the paper and of openai/gpt-2, without anything of gpt_jax.

  python make_openai_fixture.py fixtures/openai_tiny
  python make_openai_fixture.py FOLDER 12 12 768 1024 50257   (gpt2_small's size, no logits)
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

_TINY = (2, 2, 8, 16, 300)


def variables(n_layer, n_embd, n_ctx, n_vocab):
  """Random values by the names and with the shapes of OpenAI's, none of them 0 or 1 throughout."""
  rng = np.random.default_rng(0)
  D = n_embd
  shapes = {'wpe': [n_ctx, D], 'wte': [n_vocab, D], 'ln_f/g': [D], 'ln_f/b': [D]}
  for i in range(n_layer):
    for norm in ('ln_1', 'ln_2'):
      shapes |= {f'h{i}/{norm}/g': [D], f'h{i}/{norm}/b': [D]}
    linears = {'attn/c_attn': (D, 3 * D), 'attn/c_proj': (D, D)}
    linears |= {'mlp/c_fc': (D, 4 * D), 'mlp/c_proj': (4 * D, D)}
    for name, (inputs, outputs) in linears.items():
      shapes |= {f'h{i}/{name}/w': [1, inputs, outputs], f'h{i}/{name}/b': [outputs]}
  return {
    f'model/{name}': rng.normal(float(name.endswith('/g')), 0.3, shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def logits(values, n_layer, n_head, tokens_BL):
  """(B, L, V) in float64."""
  v = {name.removeprefix('model/'): value.astype(np.float64) for name, value in values.items()}

  def norm(x, name):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * v[f'{name}/g'] + v[f'{name}/b']

  def linear(x, name):
    return x @ v[f'{name}/w'][0] + v[f'{name}/b']

  def heads(x):
    return x.reshape(*x.shape[:2], n_head, -1).swapaxes(1, 2)

  L = tokens_BL.shape[1]
  x = v['wte'][tokens_BL] + v['wpe'][:L]
  for i in range(n_layer):
    q, k, u = map(heads, np.split(linear(norm(x, f'h{i}/ln_1'), f'h{i}/attn/c_attn'), 3, -1))
    scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
    scores = np.exp(np.where(np.tri(L), scores, -np.inf))
    seen = (scores / scores.sum(-1, keepdims=True) @ u).swapaxes(1, 2).reshape(x.shape)
    x = x + linear(seen, f'h{i}/attn/c_proj')
    h = linear(norm(x, f'h{i}/ln_2'), f'h{i}/mlp/c_fc')
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    x = x + linear(h, f'h{i}/mlp/c_proj')
  return norm(x, 'ln_f') @ v['wte'].T


def main(folder, *sizes):
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  n_layer, n_head, n_embd, n_ctx, n_vocab = map(int, sizes or _TINY)
  hparams = dict(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=n_embd, n_head=n_head, n_layer=n_layer)
  (folder / 'hparams.json').write_text(json.dumps(hparams, indent=2) + '\n')
  values = variables(n_layer, n_embd, n_ctx, n_vocab)
  tf.compat.v1.disable_eager_execution()
  made = {}
  with tf.compat.v1.Session() as session:
    for name, value in values.items():
      made[name] = tf.compat.v1.get_variable(name, value.shape, tf.float32)
    for name, value in values.items():
      made[name].load(value, session)
    saver = tf.compat.v1.train.Saver()
    saver.save(session, str(folder / 'model.ckpt'), write_meta_graph=False)
  if not sizes:
    tokens_BL = np.random.default_rng(1).integers(0, n_vocab, (3, n_ctx), np.int32)
    expected_BLV = logits(values, n_layer, n_head, tokens_BL)
    np.savez_compressed(
      folder / 'expected.npz', tokens=tokens_BL, logits=expected_BLV.astype(np.float32), **values
    )


if __name__ == '__main__':
  main(*sys.argv[1:])
