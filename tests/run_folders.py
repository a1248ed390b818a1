"""The folders of runs, without training: what they say of themselves, but no parameters."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from gpt_jax import atomic, knobs
from gpt_jax import config as config_lib


def write(
  path: pathlib.Path, *, step: int | None = None, lines: Iterable[Any] = (), **changes: Any
) -> None:
  """Writes a run of 20 steps whose newest checkpoint is of `step`: `train__steps=9` and so on."""
  path.mkdir(parents=True)
  values = {key.replace('__', '.'): value for key, value in changes.items()}
  config = knobs.replace(config_lib.Config(), {'train.steps': 20, 'model.vocab_size': 9, **values})
  atomic.write_json(path / 'config.json', dataclasses.asdict(config))
  atomic.write_json(path / 'tokenizer.json', {'kind': config.data.tokenizer})
  atomic.write_json(path / 'text.json', {})
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  if step is not None:
    for name in ('0', str(step), f'{step + 1}.orbax-checkpoint-tmp'):
      (path / 'checkpoints' / name).mkdir(parents=True)


def evaluated(losses: dict[int, float], **others: float) -> list[dict[str, float]]:
  """Returns lines of metrics with validation losses by step, six seconds each."""
  return [{'step': s, 'val/loss': loss, **others, 'time': 6.0 * s} for s, loss in losses.items()]
