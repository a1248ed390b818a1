"""A terminal in memory, and what stands on it."""

import io
import re


class Terminal(io.StringIO):
  """Standard output or error of a command that is on a terminal."""

  def isatty(self) -> bool:
    return True


def lines(output: str, columns: int = 100) -> list[str]:
  """What a terminal shows: cells of lines, which end at `columns`, and the erasing of a line."""
  cells: list[dict[int, str]] = [{}]
  row = column = 0
  for token in re.findall('\033\\[[0-9;]*[A-Za-z]|.', output, flags=re.DOTALL):
    if token == '\r':
      column = 0
    elif token == '\033[K':
      cells[row] = {at: each for at, each in cells[row].items() if at < column}
    elif token == '\033[A':
      row -= 1
    elif token == '\n':
      row, column = row + 1, 0  # terminals put \r before it
    else:
      if column == columns:
        row, column = row + 1, 0
      cells += [{} for _ in range(row + 1 - len(cells))]
      cells[row][column] = token
      column += 1
    cells += [{} for _ in range(row + 1 - len(cells))]
  return [''.join(line.get(at, ' ') for at in range(columns)).rstrip() for line in cells]
