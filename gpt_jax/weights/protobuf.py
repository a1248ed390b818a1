"""Protocol buffers on the wire, without their schema (protobuf.dev/programming-guides/encoding)."""

# Wire types.
_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5


class Message:
  """The fields of a message by their numbers. Unknown ones are never looked at."""

  def __init__(self, data: bytes) -> None:
    """Decodes `data`; raises `ValueError` if it isn't a message."""
    self._fields: dict[tuple[int, int], list[int | bytes]] = {}  # by number and wire type
    at = 0
    while at < len(data):
      tag, at = varint(data, at)
      number, wire = tag >> 3, tag & 7
      value: int | bytes
      if wire == _VARINT:
        value, at = varint(data, at)
      elif wire in (_I64, _I32, _LEN):
        size, at = varint(data, at) if wire == _LEN else ({_I64: 8, _I32: 4}[wire], at)
        value = data[at : at + size]
        if len(value) < size:
          raise ValueError('a field of an entry is cut off')
        at += size
      else:
        raise ValueError(f'an entry has a field of wire type {wire}')
      self._fields.setdefault((number, wire), []).append(value)

  def number(self, field: int) -> int:
    """The last value of an integer field; 0 if it is not there, as proto3 has it.

    Negative ones come as their complement to 2⁶⁴, so too large.
    """
    value = self._fields.get((field, _VARINT), [0])[-1]
    assert isinstance(value, int)
    return value

  def fixed32(self, field: int) -> int:
    """The last value of a field of four bytes; 0 if it is not there."""
    value = self._fields.get((field, _I32), [b''])[-1]
    assert isinstance(value, bytes)
    return int.from_bytes(value, 'little')

  def messages(self, field: int) -> 'list[Message]':
    """All messages in a field."""
    values = self._fields.get((field, _LEN), [])
    return [Message(value) for value in values if isinstance(value, bytes)]

  def message(self, field: int) -> 'Message':
    """The last message in a field; an empty one if there is none."""
    return (self.messages(field) or [Message(b'')])[-1]


def varint(data: bytes, at: int) -> tuple[int, int]:
  """A number in groups of 7 bits, the lowest first, and where what follows it begins."""
  number = 0
  for shift in range(0, 64, 7):
    if at >= len(data):
      break
    number |= (data[at] & 0x7F) << shift
    at += 1
    if data[at - 1] < 0x80:
      return number, at
  raise ValueError('a number in it does not end')
