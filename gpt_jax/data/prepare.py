"""From the data section of a config to a tokenizer and token stores, made once and kept."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from gpt_jax import config, errors, user_cache
from gpt_jax.data import sources, store, tokenizers
from gpt_jax.data.batches import sides
from gpt_jax.data.store import encoding, locking, ready, workers, writer

Check = Callable[[], None]
# Called now and then with what is done, the bytes done and in all, and what was written just now.
Progress = Callable[[str, int, int, encoding.Counts], None]
_COUNT_CHARACTERS = 1 << 22  # looked at between two messages
_PROCESS_BYTES = 4 << 20  # of text that are worth the start of a process, half a second


@dataclasses.dataclass(frozen=True)
class Prepared:
  """The text of a run, ready to be read.

  Attributes:
    tokenizer: What made the tokens.
    sources: In the order of the config.
    weights: Of the sources in a mixture; None if each counts by its size.
  """

  tokenizer: tokenizers.Tokenizer
  sources: tuple[store.Store | ready.ReadyTokens, ...]
  weights: tuple[float, ...] | None

  def tokenized(self) -> tuple[sides.Tokenized, ...]:
    """What there is to learn from, source by source."""
    return tuple(source.tokenized() for source in self.sources)

  def content_hashes(self) -> dict[str, str]:
    """A hash of the tokens of each source, by its spec."""
    return {source.spec: source.content_hash for source in self.sources}

  def verify(self, progress: Progress | None, check: Check | None = None) -> None:
    """Reads all tokens; raises `UserError` if they aren't what was written.

    Args:
      progress: See `Progress`.
      check: Called between shards.
    """
    total = sum(source.num_bytes for source in self.sources)
    done = 0

    def tell(num_bytes: int) -> None:
      nonlocal done
      done += num_bytes
      if check:
        check()
      if progress:
        progress('verifying the tokens', done, total, encoding.Counts())

    for source in self.sources:
      source.verify(tell)


def prepare(data: config.DataConfig, *, progress: Progress | None, check: Check | None) -> Prepared:
  """The tokenizer and the tokens of `data.source`, from the cache as far as they are there.

  A store's name holds a hash of the source's fingerprint and of the tokenizer: text that changed
  gets another store. What was written before an interruption is used again.

  Args:
    data: All but `chunks`, `split` and what belongs to them is read.
    progress: See `Progress`.
    check: Called several times a second; what it raises (`errors.Stopped`) ends the work.

  Raises:
    UserError: A source isn't sound, a kept store is damaged, or the cache can't be written.
  """
  workers.forbid_nesting()
  mixture = sources.parse_mixture(data.source)
  weights = tuple(weight for weight, _ in mixture if weight is not None)
  texts = [
    sources.open_source(spec, text_field=data.text_field)
    for _, spec in mixture
    if not ready.names(spec)
  ]
  job = _Job(data, texts, progress, check)
  try:
    tokenizer, stores = job.run()
  except OSError as e:
    raise errors.UserError(
      f'the token store in {cache_folder(data.cache_dir)} cannot be kept ({e.strerror or e}): mend '
      'that and run again, which goes on from there, or name another folder with '
      '--config.data.cache_dir.'
    ) from e
  found = tuple(
    ready.open_tokens(spec, tokenizer) if ready.names(spec) else stores[spec] for _, spec in mixture
  )
  return Prepared(tokenizer, found, weights or None)


def cache_folder(cache_dir: str) -> pathlib.Path:
  """Where stores are kept, for the value of `data.cache_dir`."""
  if cache_dir:
    return pathlib.Path(cache_dir).expanduser()
  return user_cache.folder() / 'tokens'


class _Job:
  """The stores of some sources, made where they are missing."""

  def __init__(
    self,
    data: config.DataConfig,
    texts: Sequence[sources.Source],
    progress: Progress | None,
    check: Check | None,
  ):
    self._data = data
    self._texts = texts
    self._progress = progress
    self._check = check
    folder = cache_folder(data.cache_dir)
    self._places = {text.spec: folder / self._name(text) for text in texts}

  def run(self) -> tuple[tokenizers.Tokenizer, dict[str, store.Store]]:
    """The tokenizer, and the store of each source."""
    missing = [text for text in self._texts if not self._places[text.spec].exists()]
    tokenizer = self._tokenizer(missing) if missing or not self._texts else None
    for text in missing:
      assert tokenizer is not None
      self._write(text, tokenizer)
    stores = {spec: store.Store.open(place) for spec, place in self._places.items()}
    return tokenizer or next(iter(stores.values())).tokenizer(), stores

  def _name(self, text: sources.Source) -> str:
    """A name to recognise the source by, and a hash of all that its tokens depend on."""
    # A vocabulary that is counted is one for all sources.
    counted = self._texts if tokenizers.needs_counts(self._data) else [text]
    key = [
      text.spec,
      [[other.spec, other.fingerprint] for other in counted],
      tokenizers.description(self._data),
      self._data.invalid_utf8,
      store.FORMAT_VERSION,
    ]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    slug = re.sub('[^A-Za-z0-9]+', '-', text.spec).strip('-')[:60]
    return f'{slug}-{self._data.tokenizer.partition(":")[0]}-{digest[:12]}'

  def _part_folder(self, text: sources.Source) -> pathlib.Path:
    place = self._places[text.spec]
    return place.with_name(f'.{place.name}.part')

  def _tokenizer(self, missing: Sequence[sources.Source]) -> tokenizers.Tokenizer:
    """The tokenizer; its vocabulary is counted from all sources, if it is of the kind that is."""
    if not tokenizers.needs_counts(self._data):
      return tokenizers.build(self._data, {})
    if not self._texts:
      raise errors.UserError(
        f'data.tokenizer: {self._data.tokenizer} makes its vocabulary from text, and '
        f'{self._data.source} has tokens only: name the tokenizer that made them, as gpt2.'
      )
    for text in missing:
      if kept := writer.kept_tokenizer(self._part_folder(text)):
        return kept
    parts = [part for text in self._texts for part in text.parts]
    total: collections.Counter[str] = collections.Counter()
    done = [0] * len(parts)
    work = functools.partial(_count, self._data)
    for number, message in self._run(work, parts, self._processes(parts)):
      if message is None:
        done[number] = parts[number].size
      else:
        size, counts = message
        total.update(counts)
        done[number] = min(done[number] + size, parts[number].size)
      self._tell('counting the vocabulary', done, parts, encoding.Counts())
    return tokenizers.build(self._data, total)

  def _write(self, text: sources.Source, tokenizer: tokenizers.Tokenizer) -> None:
    place, folder = self._places[text.spec], self._part_folder(text)
    folder.mkdir(parents=True, exist_ok=True)
    with locking.locked(folder, self._check):
      if place.exists():
        with contextlib.suppress(OSError):
          folder.rmdir()  # made anew after the other process was done with it
        return
      folder.mkdir(exist_ok=True)  # the one that was waited for may have given up
      if tokenizers.needs_counts(self._data):
        writer.keep_tokenizer(folder, tokenizer)
      self._write_parts(text, folder, tokenizer)
      notes = [writer.read_note(folder, number) for number in range(len(text.parts))]
      manifest = _manifest(text, tokenizer, [note for note in notes if note])
      again = sources.open_source(text.spec, text_field=self._data.text_field)
      if again.fingerprint != text.fingerprint or not manifest.tokens:
        shutil.rmtree(folder)
        raise errors.UserError(
          f'{text.spec} changed while it was read: run again.'
          if manifest.tokens
          else f'{text.spec} is empty: it has no text to learn from; name another '
          '--config.data.source.'
        )
      writer.publish(folder, place, manifest)

  def _write_parts(
    self, text: sources.Source, folder: pathlib.Path, tokenizer: tokenizers.Tokenizer
  ) -> None:
    """Writes the shards that aren't there yet."""
    todo = [n for n in range(len(text.parts)) if writer.read_note(folder, n) is None]
    processes = self._processes([text.parts[number] for number in todo])
    tasks = [
      writer.Task(
        folder=folder,
        number=number,
        part=text.parts[number],
        tokenizer=tokenizer.to_dict(),
        invalid_utf8=self._data.invalid_utf8,
        threads=max(1, workers.wanted(self._data.processes) // processes),
      )
      for number in todo
    ]
    done = [0 if number in todo else part.size for number, part in enumerate(text.parts)]
    what, nothing = f'encoding {text.spec}', encoding.Counts()
    self._tell(what, done, text.parts, nothing)
    for task_number, counts in self._run(writer.write_part, tasks, processes):
      number = todo[task_number]
      size = text.parts[number].size
      done[number] = min(done[number] + counts.characters, size) if counts else size
      self._tell(what, done, text.parts, counts or nothing)

  def _run(self, work: Any, tasks: Sequence[Any], processes: int) -> Iterator[tuple[int, Any]]:
    return workers.run(work, tasks, processes=processes, check=self._check)

  def _processes(self, parts: Sequence[sources.Part]) -> int:
    """How many processes are worth while for `parts`."""
    worth_while = sum(part.size for part in parts) // _PROCESS_BYTES
    return max(1, min(workers.wanted(self._data.processes), len(parts), worth_while))

  def _tell(
    self,
    what: str,
    done: Sequence[int],
    parts: Sequence[sources.Part],
    counts: encoding.Counts,
  ) -> None:
    if self._progress:
      self._progress(what, sum(done), sum(part.size for part in parts), counts)


class _Counted(NamedTuple):
  characters: int
  counts: collections.Counter[str]


def _count(data: config.DataConfig, part: sources.Part) -> Iterator[_Counted]:
  """Counts what a vocabulary is made of in one part, some texts at a time."""
  texts: list[str] = []
  characters = 0
  for piece in part.read():
    text, _ = sources.decode(piece, invalid_utf8=data.invalid_utf8)
    texts.append(text)
    characters += len(text)
    if characters >= _COUNT_CHARACTERS:
      yield _Counted(characters, tokenizers.counts(data, texts))
      texts, characters = [], 0
  yield _Counted(characters, tokenizers.counts(data, texts))


def _manifest(
  text: sources.Source, tokenizer: tokenizers.Tokenizer, notes: Sequence[writer.Note]
) -> store.Manifest:
  total = encoding.Counts()
  for note in notes:
    total = total.plus(note.counts)
  return store.Manifest(
    format_version=store.FORMAT_VERSION,
    source=text.spec,
    fingerprint=text.fingerprint,
    tokenizer=tokenizer.to_dict(),
    tokenizer_hash=tokenizer.hash,
    dtype=store.dtype_of(tokenizer.vocab_size).name,
    shards=[note.shard for note in notes if note.shard],
    **total._asdict(),
  )
