"""Conversations: from a line of JSON, or as one that is shown to a model.

The turns of a conversation are a prompt, its response, and so on. A template, such as
'Question: {prompt}\\nAnswer: ', says how a prompt is written.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from gpt_jax import errors
from gpt_jax.data import tokenizers
from gpt_jax.data.batches import conversations

PLACE = '{prompt}'  # of the prompt in a template
_ROLES = ('user', 'assistant')


def parse(record: Any) -> list[str]:
  """Returns the turns of a JSON object in Alpaca's form, or in the chat form with roles.

  Alpaca's has instruction, perhaps input, and output; the other messages, each with role (system,
  which may come first, user, assistant) and content. `input` follows the instruction, and the first
  prompt a system's message, behind an empty line. Raises `UserError` if it is neither, a role is
  unknown, a text is missing or empty, or a prompt has no response.
  """
  messages = record.get('messages') if isinstance(record, dict) else None
  if messages is None:
    asked = [_text(record, 'instruction'), *filter(None, [record.get('input')])]
    messages = [
      {'role': 'user', 'content': '\n\n'.join(map(str, asked))},
      {'role': 'assistant', 'content': _text(record, 'output')},
    ]
  if not isinstance(messages, list) or not messages:
    raise errors.UserError('line', 'messages must be a list with a role and a content each')
  turns, system = list[str](), ''
  for i, message in enumerate(messages):
    role, text = _text(message, 'role'), _text(message, 'content')
    if role not in ('system', *_ROLES):
      raise errors.UserError('line', f'role {role!r} must be one of system, user, assistant')
    if role == 'system' and i == 0:
      system = f'{text}\n\n'
    elif role != _ROLES[len(turns) % 2]:
      raise errors.UserError('line', f'has {role} where {_ROLES[len(turns) % 2]} should be')
    else:
      turns.append(text if turns else system + text)
  if len(turns) % 2 or not turns:
    raise errors.UserError('line', 'ends without a response (role assistant)')
  return turns


def _text(record: Any, field: str) -> str:
  text = record.get(field) if isinstance(record, dict) else None
  if not isinstance(text, str) or not text.strip():
    raise errors.UserError('line', f'has no text in field {field}')
  return text


def labelled(turns: Sequence[str], template: str) -> Iterator[tuple[str, str]]:
  """Yields the text of each turn, and which of `conversations.TURNS` it is."""
  first, prompt, response = conversations.TURNS
  for i, text in enumerate(turns):
    if i % 2:
      yield text, response
    else:
      yield template.replace(PLACE, text), prompt if i else first


def encode(tokenizer: tokenizers.Tokenizer, template: str, turns: Sequence[str]) -> list[int]:
  """Returns the tokens of turns, the last of which is a prompt, as a model is trained on them."""
  ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  for text, label in labelled(turns, template):
    ids += tokenizer.encode(text).tolist()
    if label == conversations.TURNS[-1] and tokenizer.eos_id is not None:
      ids.append(tokenizer.eos_id)
  return ids
