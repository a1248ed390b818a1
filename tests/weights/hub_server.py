"""A stand-in of the Hugging Face Hub on this machine: repositories in memory, requests recorded."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import constants

_Files = dict[str, bytes]


class Hub:
  """Repositories OWNER/NAME -> revision (a hash, or a name of one) -> its files."""

  def __init__(self) -> None:
    self.repositories: dict[str, dict[str, _Files]] = {}
    self.names: dict[str, str] = {}  # of revisions, such as main -> their hash
    self.requests: list[tuple[str, str]] = []  # method, path
    self.status = 0  # that all requests are answered with, if not 0
    self.cut = False  # whether downloads end in their middle
    self.address = ''

  def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Returns the status, headers and content of an answer."""
    self.requests.append((method, path))
    if self.status:
      return self.status, {}, b'{}'
    if method == 'POST':
      return 200, {}, json.dumps(self._post(path, body)).encode()
    pattern = '(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)/?(.*)'
    match = re.fullmatch(pattern, path)
    files = self.repositories.get(match[1]) if match else None
    if match is None or files is None:
      return 404, {'X-Error-Code': 'RepoNotFound'}, b'{}'
    commit = self.names.get(match[3], match[3])
    if commit not in files:
      return 404, {'X-Error-Code': 'RevisionNotFound'}, b'{}'
    if match[2] == 'resolve':
      content = files[commit][match[4]]
      etag = f'"{hashlib.sha256(content).hexdigest()}"'
      return 200, {'ETag': etag, 'X-Repo-Commit': commit, 'Accept-Ranges': 'bytes'}, content
    tree = [
      {'type': 'file', 'path': name, 'size': len(content), 'oid': hashlib.sha1(content).hexdigest()}
      for name, content in files[commit].items()
    ]
    about: Any = {'id': match[1], 'sha': commit, 'siblings': []}
    return 200, {}, json.dumps(tree if match[2] == 'tree' else about).encode()

  def _post(self, path: str, body: bytes) -> object:
    if path == '/api/repos/create':
      values = json.loads(body)
      name = f'{values["organization"]}/{values["name"]}'
      self.repositories.setdefault(name, {})
      return {'url': f'{constants.ENDPOINT}/{name}', 'id': name}
    if path == '/api/validate-yaml':  # that of a README.md
      return {'errors': [], 'warnings': []}
    name = '/'.join(path.split('/')[3:5])
    if '/preupload/' in path:
      files = json.loads(body)['files']
      keep = {'uploadMode': 'regular', 'shouldIgnore': False}
      return {'files': [{'path': file['path'], **keep} for file in files]}
    values = [json.loads(line)['value'] for line in body.splitlines()]
    commit = hashlib.sha1(body).hexdigest()
    self.names['main'] = commit
    self.repositories[name][commit] = {
      each['path']: base64.b64decode(each['content']) for each in values if 'path' in each
    }
    return {'commitUrl': f'{constants.ENDPOINT}/{name}', 'commitOid': commit, 'success': True}


@contextlib.contextmanager
def serving(cache: pathlib.Path) -> Iterator[Hub]:
  """Serves a `Hub`, which huggingface_hub takes for its own, with an empty cache."""
  hub = Hub()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
      size = int(self.headers.get('Content-Length') or 0)
      path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
      status, headers, content = hub.answer(self.command, path, self.rfile.read(size))
      self.send_response(status)
      for name, value in ({'Content-Length': str(len(content))} | headers).items():
        self.send_header(name, value)
      self.end_headers()
      if self.command != 'HEAD':
        self.wfile.write(
          content[: len(content) // 2] if hub.cut and '/resolve/' in path else content
        )
        self.close_connection = hub.cut

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  hub.address = f'http://127.0.0.1:{server.server_port}'
  template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  with pytest.MonkeyPatch.context() as patch:
    # Read from the environment when huggingface_hub is imported.
    patch.setattr(constants, 'HF_HUB_OFFLINE', False)
    patch.setattr(constants, 'ENDPOINT', hub.address)
    patch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    patch.setattr(constants, 'HF_HUB_CACHE', str(cache))
    patch.setenv('HF_TOKEN', 'a token')
    yield hub
  server.shutdown()
  server.server_close()
