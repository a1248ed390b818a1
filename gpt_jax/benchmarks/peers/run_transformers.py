"""Measures greedy generation by transformers, with random weights and its cache."""

import json
import sys
import time
from typing import Any


def main(spec: dict[str, Any]) -> dict[str, float]:
  """Returns, for each number of rows, ms to the first token and tokens a second after it."""
  import torch
  import transformers

  options, model = spec['options'], spec['config']['model']
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  shape = {name: model[name] for name in ('n_embd', 'n_layer', 'n_head')}
  shape |= {'n_positions': model['block_size'], 'vocab_size': spec['vocab_size']}
  # Without eos, no token ends a text.
  config = transformers.GPT2Config(**shape, bos_token_id=None, eos_token_id=None, pad_token_id=0)
  dtype = torch.bfloat16 if device == 'cuda' else torch.float32
  net = transformers.GPT2LMHeadModel(config).to(device, dtype).eval()

  def stamps(ids: Any) -> list[float]:
    """Returns when it began, and when each token was there."""
    times = [time.perf_counter()]

    def note(ids: Any, *_: Any, **__: Any) -> Any:
      if len(times) == 1 or ids.shape[1] == total:
        ids.cpu()  # waits for the device
      times.append(time.perf_counter())
      return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    criteria = transformers.StoppingCriteriaList([note])
    mask, total = torch.ones_like(ids), ids.shape[1] + new
    net.generate(
      ids,
      attention_mask=mask,
      max_new_tokens=new,
      do_sample=False,
      stopping_criteria=criteria,
      # The form that it compiles by itself, on a GPU.
      cache_implementation='static' if options['peer_compile'] else None,
    )
    return times

  found, new = {}, options['new_tokens']
  for B in map(int, options['rows'].split(',')):
    ids = torch.randint(1, model['vocab_size'], (B, options['prompt_tokens']), device=device)
    for _ in range(2):  # the first is the warm-up
      began, first, *_, end = stamps(ids)
    found[f'first token × {B}'] = 1e3 * (first - began)
    found[f'rate × {B}'] = (new - 1) * B / (end - first)
  return found


if __name__ == '__main__':
  print('\n' + json.dumps(main(json.load(sys.stdin))))
