"""A run measured on all that it held out: its validation split or its test split."""

import dataclasses
from typing import Any

import numpy as np

from gpt_jax import errors, knobs
from gpt_jax import progress as progress_lib
from gpt_jax.data import loader
from gpt_jax.data.batches import batch as batch_lib
from gpt_jax.parallel import mesh as mesh_lib
from gpt_jax.training import loop, objectives, program
from gpt_jax.weights import saved_model


@dataclasses.dataclass(frozen=True)
class Result:
  """What a model gets on a split: `measures` as of `objectives`, over `targets` of them."""

  targets: int
  measures: dict[str, float]
  classes: tuple[str, ...]
  confusion: list[list[int]] | None  # by class, then by the class that was predicted

  def table(self) -> list[tuple[str, str]]:
    """Returns names and values to print."""
    counted = 'documents' if self.classes else 'tokens'
    rows = [(counted, f'{self.targets:,}')]
    rows += [(name, f'{value:.4f}') for name, value in self.measures.items()]
    if self.confusion:
      rows.append(('predicted', ' '.join(f'{name:>9}' for name in self.classes)))
      for name, counts in zip(self.classes, self.confusion, strict=True):
        rows.append((name, ' '.join(f'{count:>9,}' for count in counts)))
    return rows


def measure(model: saved_model.SavedModel, split: str, *, progress: progress_lib.Report) -> Result:
  """Measures a run's model on each row of its `validation` or `test` split, once.

  Raises `UserError` if the model isn't that of a run, there is no such split, or the text has
  changed.
  """
  if model.run is None:
    raise errors.UserError('data', 'run: needs a run', f'{model.path} has no text of its own')
  config = dataclasses.replace(model.run.read_config(), model=model.config)
  config = knobs.replace(config, {'model.attention': 'auto'})
  mesh = mesh_lib.make_mesh(config)
  data = loader.open_data(config, check=None)
  dataset = {'validation': data.val, 'test': data.test}.get(split)
  if dataset is None:
    fix = 'train with `data.test_fraction`' if split == 'test' else 'use run:validation or run:test'
    raise errors.UserError('data', f'{model.path} has no split {split!r}', fix)
  errors.raise_all(model.run.changed_text(data.content_hashes))
  built = program.build(program.resolve(config, data.tokenizer, data.classes, mesh), mesh)
  params = model.load(built.state.params)
  total = sum(map(len, dataset.chunks))

  def rows(numbers: np.ndarray) -> batch_lib.Batch:
    batch = dataset.val_rows(np.minimum(numbers, total - 1), total=total)
    beyond_R1 = (numbers >= total)[:, None]  # fills up the last batch
    return batch._replace(targets=np.where(beyond_R1, batch_lib.IGNORED, batch.targets))

  count = -(-total // config.train.batch_size)
  done = iter(range(count))
  sums: Any = loop.evaluate(
    built, params, rows, count, check=lambda: progress('measuring', next(done), count)
  )
  return Result(
    targets=int(sums['targets']),
    measures=objectives.measures(sums),
    classes=config.model.class_names,
    confusion=sums['confusion'].astype(int).tolist() if 'confusion' in sums else None,
  )
