"""Text and vocabularies that the tests of the data room share."""

import http.server
import pathlib
import threading

import pytest

from gpt_jax import errors
from gpt_jax.data import bpe, tokenizers

_SHARED = pathlib.Path(__file__).resolve().parents[2].parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def shared_data():
  """The folder with real, prepared data that may lie beside the checkout."""
  if not _SHARED.is_dir():
    pytest.skip(f'no real data: {_SHARED} is not there')
  return _SHARED


@pytest.fixture(scope='session')
def vocabulary():
  """Makes GPT-2's vocabulary be found, for the rest of the session."""
  with pytest.MonkeyPatch.context() as patch:
    if (_SHARED / 'tiktoken').is_dir():
      patch.setenv('TIKTOKEN_CACHE_DIR', str(_SHARED / 'tiktoken'))
    try:
      bpe.find_merges()
    except errors.UserError as e:
      pytest.skip(f'no GPT-2 vocabulary: {e}')
    yield


@pytest.fixture(scope='session')
def gpt2(vocabulary):
  """GPT-2's tokenizer."""
  return tokenizers.build('gpt2', [])


@pytest.fixture
def serve():
  """A function that serves bytes at the URL it returns."""
  servers = []

  def start(body):
    class Handler(http.server.BaseHTTPRequestHandler):
      def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

      def log_message(self, *args):
        pass

    server = http.server.HTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    servers.append(server)
    return f'http://127.0.0.1:{server.server_port}/vocab.bpe'

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()
