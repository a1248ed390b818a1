"""From the data section of a config to a tokenizer and token stores, made once and kept."""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax import atomic, config, errors, user_cache
from gpt_jax import progress as progress_lib
from gpt_jax.data import encoding, pretokenized, sources, store, tokenizers, workers

_TOTALS = ('tokens', 'documents', 'characters', 'empty_documents', 'invalid_utf8')


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The tokens of a run's text, ready to be read.

  `sources` are in the order of the config; `weights` are theirs, None if each counts by its size;
  `new_stores` are those among them that were written just now.
  """

  tokenizer: tokenizers.Tokenizer
  sources: tuple[store.Store | pretokenized.TokenFiles, ...]
  weights: tuple[float, ...] | None
  new_stores: tuple[store.Store, ...]

  def verify(self, *, progress: progress_lib.Report | None = None) -> None:
    """Reads all token stores; raises `UserError` if they aren't what was written."""
    # Token files have just been read by `open_files`.
    stores = [source for source in self.sources if isinstance(source, store.Store)]
    total = sum(each.tokens.nbytes for each in stores)
    report = workers.Job(progress=progress).reporter('verifying tokens', total)
    for each in stores:
      each.verify(report)


def prepare(data: config.DataConfig, *, progress: progress_lib.Report | None = None) -> Prepared:
  """Returns the tokenizer and the tokens of `data.source`; encodes what isn't in the cache.

  The name of a store has a hash of everything that its tokens depend on: changing the text or the
  tokenizer creates a new store. Until it is complete, a store has a hidden name.

  Raises `UserError` if a source is invalid, a store is damaged, or the cache can't be written.
  """
  mixture = sources.parse_mixture(data.source)
  texts = [
    _open(spec, data)
    for _, spec in mixture
    if data.template or not spec.startswith(pretokenized.SCHEME)
  ]
  cache = pathlib.Path(data.cache_dir).expanduser()
  folder = cache if data.cache_dir else user_cache.folder() / 'tokens'
  places = {text.spec: folder / _store_name(data, text, texts) for text in texts}
  stores = {spec: store.Store.open(place) for spec, place in places.items() if place.exists()}
  missing = [text for text in texts if text.spec not in stores]
  job = workers.Job(data.processes, progress)
  try:
    # All stores have one tokenizer: it is part of their names.
    kept = next(iter(stores.values()), None)
    tokenizer = kept.tokenizer() if kept else _build_tokenizer(data, texts, job)
    for text in missing:
      stores[text.spec] = _write_store(data, text, tokenizer, places[text.spec], job)
  except OSError as e:
    problem = f'{folder} cannot be written ({e.strerror or e})'
    raise errors.UserError('data.cache_dir', problem, 'use another folder') from e
  return Prepared(
    tokenizer=tokenizer,
    sources=tuple(
      stores.get(spec) or pretokenized.open_files(spec, tokenizer, job) for _, spec in mixture
    ),
    weights=tuple(weight for weight, _ in mixture if weight is not None) or None,
    new_stores=tuple(stores[text.spec] for text in missing),
  )


def _open(spec: str, data: config.DataConfig) -> sources.Source:
  fields = {name: getattr(data, name) for name in ('text_field', 'label_field', 'template')}
  return sources.open_source(spec, **fields)


def _store_name(
  data: config.DataConfig, text: sources.Source, texts: Sequence[sources.Source]
) -> str:
  """A name that shows the source, with a hash of everything that the tokens depend on."""
  # A vocabulary that is counted is one for all sources.
  counted = texts if tokenizers.needs_counts(data) else [text]
  key = [
    text.spec,
    [[other.spec, other.fingerprint] for other in counted],
    tokenizers.description(data),
    data.invalid_utf8,
    store.FORMAT_VERSION,
  ]
  digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
  slug = re.sub('[^A-Za-z0-9]+', '-', text.spec).strip('-')[:60]
  return f'{slug}-{data.tokenizer.partition(":")[0]}-{digest[:12]}'


def _build_tokenizer(
  data: config.DataConfig, texts: Sequence[sources.Source], job: workers.Job
) -> tokenizers.Tokenizer:
  """The tokenizer; if its vocabulary is counted, then from all sources."""
  total: collections.Counter[str] = collections.Counter()
  if tokenizers.needs_counts(data):
    if not texts:
      raise errors.UserError(
        'data.tokenizer',
        f'{data.tokenizer} needs text to make its vocabulary from, and `data.source` has tokens',
        'name the tokenizer that made them, such as gpt2',
      )
    parts = [part for text in texts for part in text.parts]
    work = functools.partial(_count_part, data)
    for counts in job.map('counting the vocabulary', work, parts):
      total.update(counts)
  return tokenizers.build(data, total)


def _count_part(
  data: config.DataConfig, number: int, part: sources.Part, report: workers.Report | None = None
) -> collections.Counter[str]:
  def texts() -> Iterator[str]:
    for piece in part.read():
      text, _ = sources.decode(piece, invalid_utf8=data.invalid_utf8)
      if report:
        report(len(text))
      yield text

  return tokenizers.counts(data, texts())


def _write_store(
  data: config.DataConfig,
  text: sources.Source,
  tokenizer: tokenizers.Tokenizer,
  place: pathlib.Path,
  job: workers.Job,
) -> store.Store:
  """Encodes a source into a hidden folder, which gets its name when it is complete."""
  with atomic.new_folder(place) as folder:
    work = functools.partial(
      _encode_part,
      json.dumps(tokenizer.to_dict()),
      folder=folder,
      invalid_utf8=data.invalid_utf8,
      threads=job.threads(text.parts),
    )
    shards = list(job.map(f'encoding {text.spec}', work, text.parts))
    manifest = store.Manifest(
      format_version=store.FORMAT_VERSION,
      source=text.spec,
      fingerprint=text.fingerprint,
      tokenizer=tokenizer.to_dict(),
      tokenizer_hash=tokenizer.hash,
      dtype=store.dtype_of(tokenizer.vocab_size).name,
      shards=[shard for shard in shards if shard.tokens],
      **{name: sum(getattr(shard, name) for shard in shards) for name in _TOTALS},
    )
    if not manifest.tokens:
      raise errors.UserError('data.source', f'{text.spec} has no text')
    if _open(text.spec, data).fingerprint != text.fingerprint:
      raise errors.UserError('data.source', f'{text.spec} changed while it was read', 'run again')
    atomic.write_json(folder / store.MANIFEST, dataclasses.asdict(manifest.sealed()))
    try:
      folder.rename(place)
    except OSError:
      if not (place / store.MANIFEST).is_file():  # else another process was first
        raise
  return store.Store.open(place)


def _encode_part(tokenizer: str, *args: Any, **options: Any) -> store.Shard:
  return encoding.write_shard(*args, tokenizer=_tokenizer(tokenizer), **options)


@functools.lru_cache(1)
def _tokenizer(description: str) -> tokenizers.Tokenizer:
  """From JSON; GPT-2's takes 0.15 s, and a process encodes many parts."""
  return tokenizers.from_dict(json.loads(description))
