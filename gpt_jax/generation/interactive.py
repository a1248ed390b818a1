"""Text on a terminal: written while it is generated, and a session in which prompts are typed."""

import contextlib
import dataclasses
import importlib
import io
import sys
from collections.abc import Callable, Generator, Iterator

from gpt_jax import errors, knobs, oom, progress, user_cache
from gpt_jax.data.sources import turns
from gpt_jax.generation import language_model, options, rows

OOM_FIX = 'lower `num_samples` or `max_new_tokens`, or give fewer prompts at a time'
_HISTORY_LENGTH = 1000


def write(
  prompt: str,
  parts: Generator[str, None, rows.Sample],
  *,
  watch: Callable[[], None] = lambda: None,
) -> rows.Sample:
  """Prints a prompt and the parts of its text as they come; calls `watch` after each part."""
  rest = prompt  # it comes with the first part: until then its line says what is being done
  try:
    with progress.doing('compiling'):
      part = next(parts)
    while True:
      print(rest + part, end='', flush=True)
      rest = ''
      watch()
      part = next(parts)
  except StopIteration as end:
    print(rest, flush=True)
    return end.value


def report_shifts(context_shifts: int, block_size: int) -> None:
  """Reports on standard error that the beginning of a text was dropped, if it was."""
  if context_shifts:
    problem = f'the context of {block_size} tokens was full {context_shifts}×'
    print(f'{problem}: generation went on from its last half', file=sys.stderr)


def run(
  model: language_model.LanguageModel,
  request: options.Request,
  *,
  chat: bool = False,
  report: Callable[[errors.UserError], None],
) -> None:
  """Reads prompts from standard input, line by line, and writes a text for each.

  The seed grows by one with each text, so that a repeated prompt gives another text. Errors are
  passed to `report` and don't end the session. In a `chat` the lines are the prompts of one
  conversation, of which the model sees as much as leaves room for a response; a text that is
  stopped isn't part of it. Raises `UserError` if the model knows no conversations.
  """
  if chat and (not model.template or model.config.kind == 'encoder_decoder'):
    fix = 'train one that starts from it: `task=instruct`, `data.template`, `init_from`'
    raise errors.UserError('model', 'was not trained to talk', fix)
  talk: list[str] = []
  if isinstance(sys.stdin, io.TextIOWrapper):
    sys.stdin.reconfigure(encoding='utf-8', errors='surrogateescape')  # whatever the locale
  on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
  with line_history() if on_terminal else contextlib.nullcontext():
    if on_terminal:
      print('Each line is a prompt. Ctrl-C stops a text, Ctrl-D quits.', file=sys.stderr)
    while True:
      try:
        prompt = input('> ' if on_terminal else '')
        if not knobs.is_utf8(prompt):
          raise errors.UserError('prompt', 'is not UTF-8')
        with oom.oom_as_user_error(OOM_FIX):
          if chat:
            asked, ids = _recall(model, [*talk, prompt], request.settings.max_new_tokens)
            sample = write('', model.stream(ids, request=request))
            talk = [*asked, sample.text or '']
          else:
            sample = write(model.shown(prompt), model.stream(prompt, request=request))
        report_shifts(sample.context_shifts, model.config.block_size)
        seed = (request.settings.seed + 1) % 2**32
        settings = dataclasses.replace(request.settings, seed=seed)
        request = dataclasses.replace(request, settings=settings)
      except EOFError:
        return
      except errors.UserError as e:
        report(e)
      except KeyboardInterrupt:
        if not on_terminal:
          raise
        print(flush=True)


def _recall(
  model: language_model.LanguageModel, talk: list[str], max_new_tokens: int
) -> tuple[list[str], list[int]]:
  """The last turns that leave room for a response, at least the last one, and their tokens."""
  assert model.tokenizer is not None  # `sample` has checked it
  most = model.config.block_size - min(max_new_tokens, model.config.block_size // 2)
  while len(ids := turns.encode(model.tokenizer, model.template, talk)) > most and len(talk) > 1:
    talk = talk[2:]
  return talk, ids


@contextlib.contextmanager
def line_history() -> Iterator[None]:
  """Makes `input` edit lines, with a history that is kept in the user's cache folder."""
  path, readline = user_cache.folder() / 'history', None
  with contextlib.suppress(ImportError, OSError):  # Python may lack it; the first time, no history
    readline = importlib.import_module('readline')
    readline.set_history_length(_HISTORY_LENGTH)
    readline.read_history_file(path)
  yield
  with contextlib.suppress(OSError):  # a history is not worth an error
    path.parent.mkdir(parents=True, exist_ok=True)
    if readline:
      readline.write_history_file(path)
