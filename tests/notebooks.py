"""Executes notebooks; as a command, some of the repository at full size, and keeps what they show.

python -m tests.notebooks notebooks/train_your_first_gpt.ipynb
"""

import base64
import contextlib
import io
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import jupyter_client
import nbclient
import nbformat
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
# All that a notebook says of itself, so that its changes are those of its cells.
METADATA = {
  'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
  'language_info': {'name': 'python'},
}
_COLORS = 128  # of a picture that is kept: enough for letters and maps


@contextlib.contextmanager
def kernel() -> Iterator[jupyter_client.KernelManager]:
  """Starts a kernel of this Python, which neither reads nor changes what a user has."""
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  with tempfile.TemporaryDirectory() as private:
    changes = dict.fromkeys(('IPYTHONDIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR'), private)
    changes |= {'PYTHONPATH': os.pathsep.join(paths), 'JUPYTER_PREFER_ENV_PATH': '1'}
    sockets: Any = {'transport': 'ipc', 'ip': f'{private}/socket'}  # no ports to compete for
    manager = jupyter_client.KernelManager(kernel_name='python3', **sockets)
    manager.client_class = 'jupyter_client.asynchronous.AsyncKernelClient'  # as nbclient needs it
    with mock.patch.dict(os.environ, changes):
      manager.start_kernel()
    try:
      yield manager
    finally:
      manager.shutdown_kernel(now=True)


def execute(
  path: pathlib.Path,
  manager: jupyter_client.KernelManager,
  folder: pathlib.Path,
  values: Mapping[str, Any],
) -> Any:
  """Returns the notebook at `path`, executed in `folder` by a kernel, where it finds no variables.

  `values` replace those of its parameters. Raises `nbclient.exceptions.CellExecutionError`.
  """
  book = nbformat.read(path, as_version=4)
  (cell,) = (cell for cell in book.cells if 'parameters' in cell.metadata.get('tags', ()))
  assert all(name in cell.source for name in values), cell.source
  lines = [f'{name} = {value!r}' for name, value in values.items()]
  first = nbformat.v4.new_code_cell(f'%reset -f\n%cd -q {folder}')
  injected = nbformat.v4.new_code_cell('\n'.join(lines))
  book.cells.insert(book.cells.index(cell) + 1, injected)
  book.cells.insert(0, first)
  options: Any = {'timeout': None, 'record_timing': False, 'coalesce_streams': True}
  nbclient.NotebookClient(book, km=manager, **options).execute()
  book.cells = [cell for cell in book.cells if cell not in (first, injected)]
  return book


def pictures(book: Any) -> Iterator[Any]:
  """Yields the data of each output that is a picture, to read or to replace its `image/png`."""
  for cell in book.cells:
    for output in cell.get('outputs', ()):
      if 'image/png' in output.get('data', {}):
        yield output.data


def open_picture(data: Any) -> Image.Image:
  return Image.open(io.BytesIO(base64.b64decode(data['image/png'])))


def _keep(path: pathlib.Path) -> None:
  """Executes a notebook where it lies, and writes it with its outputs."""
  with kernel() as manager:
    book = execute(path, manager, path.resolve().parent, {})
  book.metadata = METADATA
  code = [cell for cell in book.cells if cell.cell_type == 'code']
  for number, cell in enumerate(code, 1):
    cell.execution_count = number
  for data in pictures(book):
    file = io.BytesIO()
    open_picture(data).convert('RGB').quantize(_COLORS).save(file, 'png', optimize=True)
    data['image/png'] = base64.b64encode(file.getvalue()).decode()
  nbformat.write(book, path)


if __name__ == '__main__':
  for name in sys.argv[1:]:
    _keep(pathlib.Path(name))
