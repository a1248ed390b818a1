"""Search by meaning: documents and queries are pooled hidden states, compared by their cosine.

Shapes in names: N documents, Q queries, D width of the hidden states, K width of an index.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from gpt_jax import atomic, errors, json_files, progress
from gpt_jax.data import sources
from gpt_jax.generation import language_model

_ARRAYS = ('vectors', 'transform', 'documents')
_AT_ONCE = 256  # documents, batched by their lengths
_SNIPPET = 200  # characters
_SPACE = re.compile(r'(?:\s|<br ?/?>)+')
# Of the variance: by 1/2 all axes count the same (Su et al. 2021); by 1/4 large ones count more.
_POWERS = {'centered': 0.0, 'half_whitened': 0.25, 'whitened': 0.5}
_LEAST_VARIANCE = 1e-6  # of the largest, for a direction to count


class Hit(NamedTuple):
  """A document that was found: its cosine with the query, its place, and how it begins."""

  score: float
  place: str
  snippet: str


@dataclasses.dataclass(frozen=True)
class Index:
  """The documents of a corpus to search in, memory-mapped."""

  pooling: str
  vectors_NK: np.ndarray  # of length 1
  transform: np.ndarray  # (D + 1, K): a matrix, and below it the row that is added
  documents: np.ndarray  # (N,): place and begin of each, with a tab between, in UTF-8

  def search(
    self, model: language_model.LanguageModel, queries: Sequence[str], *, top: int
  ) -> list[list[Hit]]:
    """Returns the `top` documents of each query, the nearest first; raises `UserError`."""
    vectors_QD = model.embed(queries, pooling=_before(self.pooling))
    hits = []
    for scores_N in _units(vectors_QD, self.transform) @ self.vectors_NK.T:
      nearest = np.argpartition(-scores_N, min(top, len(scores_N)) - 1)[:top]
      nearest = nearest[np.argsort(-scores_N[nearest], kind='stable')]
      texts = [self.documents[i].decode().rsplit('\t', 1) for i in nearest]
      hits.append([Hit(float(scores_N[i]), *text) for i, text in zip(nearest, texts, strict=True)])
    return hits


def identity(
  model: language_model.LanguageModel, corpus: sources.Source, *, pooling: str
) -> dict[str, str]:
  """Returns what an index is made of: hashes of its model and its corpus, and its pooling."""
  if model.tokenizer is None:
    raise errors.UserError('model', 'has no tokenizer', 'put its tokenizer.json there')
  about = json.dumps([dataclasses.asdict(model.config), model.tokenizer.hash])
  digest = hashlib.sha256(about.encode())
  for leaf in jax.tree.leaves(model.params):
    digest.update(np.asarray(leaf).tobytes())
  text = json.dumps([corpus.fingerprint, [part.split for part in corpus.parts]])
  corpus_hash = hashlib.sha256(text.encode()).hexdigest()
  return {'model': digest.hexdigest(), 'corpus': corpus_hash, 'pooling': pooling}


def open_index(path: pathlib.Path, made_of: dict[str, str]) -> Index:
  """Opens an index; raises `UserError` if it is damaged or its `identity` isn't `made_of`."""
  has = json_files.read(path / 'index.json')
  if wrong := [
    f'another {key} ({has.get(key)})' for key in made_of if has.get(key) != made_of[key]
  ]:
    problem = f'{path} was made with {" and ".join(wrong)}'
    raise errors.UserError('index', problem, 'choose another folder, or delete it')
  try:
    arrays = [np.load(path / f'{name}.npy', mmap_mode='r') for name in _ARRAYS]
  except (OSError, ValueError, EOFError) as e:
    raise errors.UserError(str(path), f'is damaged ({e})', 'delete it to make it again') from e
  return Index(made_of['pooling'], *arrays)


def build(
  path: pathlib.Path,
  model: language_model.LanguageModel,
  corpus: sources.Source,
  made_of: dict[str, str],
  *,
  invalid_utf8: str,
  progress: progress.Report,
) -> Index:
  """Makes the index of a corpus at `path`, which is there only once it is complete.

  `made_of` is its `identity`. Texts are read a few at a time; vectors and begins are in memory.
  Long documents of text files count as several, of about a megabyte. Raises `UserError`.
  """
  pooling, vectors, begins = made_of['pooling'], [], []
  done, size, total = 0, 0, sum(part.size for part in corpus.parts)

  def show(_: str, windows: int, of: int) -> None:
    progress(f'embedding {corpus.spec}', min(done + size * windows // of, total), total)

  try:
    with atomic.new_folder(path) as folder:
      show('', 0, 1)  # the first batch takes the longest
      for places, texts in _batches(corpus, invalid_utf8):
        size = sum(map(len, texts))
        with errors.placed('texts', places):
          vectors.append(model.embed(texts, pooling=_before(pooling), progress=show))
        for place, text in zip(places, texts, strict=True):
          snippet = _SPACE.sub(' ', text[: 2 * _SNIPPET])[:_SNIPPET]
          begins.append(f'{place}\t{snippet}'.encode())
        done += size
        os.utime(folder)  # else it would look stale to another process
      if not vectors:
        raise errors.UserError('data.source', f'{corpus.spec} has no text')
      vectors_ND = np.concatenate(vectors)
      transform = _transform(vectors_ND, pooling)
      arrays = (_units(vectors_ND, transform), transform, np.array(begins))
      for name, array in zip(_ARRAYS, arrays, strict=True):
        with atomic.open_file(folder / f'{name}.npy') as file:
          np.save(file, array)
      atomic.write_json(folder / 'index.json', made_of | {'source': corpus.spec})
      try:
        folder.rename(path)
      except OSError:
        if not (path / 'index.json').is_file():  # else another process was first
          raise
  except OSError as e:
    problem = f'{path} cannot be written ({e.strerror or e})'
    raise errors.UserError('index', problem, 'use another folder') from e
  return open_index(path, made_of)


def _batches(
  corpus: sources.Source, invalid_utf8: str
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
  """The places and the texts of some documents at a time, without empty ones."""
  pieces = (piece for part in corpus.parts for piece in part.read())
  texts = ((piece.place, sources.decode(piece, invalid_utf8=invalid_utf8)[0]) for piece in pieces)
  documents = ((place, text) for place, text in texts if text.strip())
  while batch := tuple(itertools.islice(documents, _AT_ONCE)):
    places, of_batch = zip(*batch, strict=True)
    yield places, of_batch


def _before(pooling: str) -> str:
  """How the hidden states are pooled that `pooling` transforms."""
  return 'last' if pooling == 'last' else 'mean'


def _transform(vectors_ND: np.ndarray, pooling: str) -> np.ndarray:
  """What centers and whitens: divides each principal axis by a power of its variance."""
  N, D = vectors_ND.shape
  if pooling not in _POWERS:
    return np.eye(D + 1, D, dtype=np.float32)
  mean_D = vectors_ND.mean(0, dtype=np.float64)
  centered_ND = vectors_ND - mean_D.astype(np.float32)
  variance_D, axes_DD = np.linalg.eigh(np.float64(centered_ND.T @ centered_ND) / N)
  counts = variance_D > _LEAST_VARIANCE * variance_D[-1]
  matrix_DK = axes_DD[:, counts] * variance_D[counts] ** -_POWERS[pooling]
  return np.vstack([matrix_DK, -mean_D @ matrix_DK]).astype(np.float32)


def _units(vectors_ND: np.ndarray, transform: np.ndarray) -> np.ndarray:
  vectors_NK = vectors_ND @ transform[:-1] + transform[-1]
  return vectors_NK / np.maximum(np.linalg.norm(vectors_NK, axis=1, keepdims=True), 1e-12)
