"""Measures training steps of a checkout of nanoGPT, with its own model and optimizer."""

import contextlib
import importlib
import json
import sys
import time
from typing import Any

_WARM_UP = 3  # steps


def main(spec: dict[str, Any]) -> dict[str, float]:
  """Returns milliseconds a step and tokens a second, or seconds from the start to a step."""
  import torch

  sys.path.insert(0, spec['folder'])
  gpt: Any = importlib.import_module('model')
  model, train, adamw = (spec['config'][name] for name in ('model', 'train', 'optimizer'))
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.manual_seed(train['seed'])
  torch.set_float32_matmul_precision('high')  # TF32 on cuda, which its train.py allows
  names = ('n_layer', 'n_head', 'n_embd', 'block_size', 'dropout', 'bias')
  shape = {name: model[name] for name in names}
  net = gpt.GPT(gpt.GPTConfig(vocab_size=spec['vocab_size'], **shape)).to(device)
  optimizer = net.configure_optimizers(
    adamw['weight_decay'], adamw['learning_rate'], (adamw['b1'], adamw['b2']), device
  )
  forward = torch.compile(net) if spec['options']['peer_compile'] else net
  bf16 = torch.autocast('cuda', torch.bfloat16) if device == 'cuda' else contextlib.nullcontext()
  parts, L = train['gradient_accumulation'], model['block_size']
  tokens = torch.randint(model['vocab_size'], (1 << 20,))

  def batch() -> list[Any]:
    starts = torch.randint(len(tokens) - L, (train['batch_size'] // parts,))
    rows = torch.stack([tokens[i : i + L + 1] for i in starts])
    rows = rows.pin_memory().to(device, non_blocking=True) if device == 'cuda' else rows
    return [rows[:, :-1].contiguous(), rows[:, 1:].contiguous()]

  def seconds(steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
      for _ in range(parts):
        with bf16:
          loss = forward(*batch())[1] / parts
        loss.backward()
      if adamw['clip']:
        torch.nn.utils.clip_grad_norm_(net.parameters(), adamw['clip'])
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
    loss.item()
    if device == 'cuda':
      torch.cuda.synchronize()
    return time.perf_counter() - began

  if spec['name'] == 'startup':
    seconds(1)
    return {'warm start': time.time() - spec['began']}
  seconds(_WARM_UP)
  each = seconds(spec['options']['steps']) / spec['options']['steps']
  return {'step': 1e3 * each, 'rate': train['batch_size'] * L / each}


if __name__ == '__main__':
  print('\n' + json.dumps(main(json.load(sys.stdin))))
