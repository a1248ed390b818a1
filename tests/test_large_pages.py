"""Tests of large_pages: a command on Linux restarts itself once, with settings that glibc takes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='settings of the GNU C library')

# A config file that says in what process it is executed; the command ends there.
_PROBE = """
import json, os, pathlib, sys

environ = pathlib.Path('/proc/self/environ').read_text()
environ = environ.replace(chr(0) + 'glibc.', ':glibc.')  # glibc itself has cut them apart
found = {'id': os.getpid(), 'arguments': sys.argv[1:], 'input': sys.stdin.read()}
found['at start'] = [x for x in environ.split(chr(0)) if x.startswith('GLIBC_TUNABLES=')]
found['now'] = os.environ.get('GLIBC_TUNABLES')
print(json.dumps(found))
sys.exit(7)
"""


def _probe(tmp_path, **variables):
  """Returns what the probe prints, once, in the process that was started."""
  (tmp_path / 'probe.py').write_text(_PROBE)
  command = [
    sys.executable,
    '-m',
    'gpt_jax.train',
    f'--config={tmp_path}/probe.py',
    '--workdir=a b',
  ]
  env = {key: value for key, value in os.environ.items() if key != 'GLIBC_TUNABLES'} | variables
  pipe = subprocess.PIPE
  with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as process:
    output, _ = process.communicate('a question')
  assert process.returncode == 7
  found = json.loads(output)
  assert found['id'] == process.pid
  assert found['arguments'] == command[3:]
  assert found['input'] == 'a question'
  return found


def test_a_command_restarts_itself_with_settings_that_the_c_library_takes(tmp_path):
  found = _probe(tmp_path)
  (given,) = found['at start']
  assert found['now'] is None, 'programs that it starts would inherit it'
  loader = re.search(r'/\S*/ld-linux\S*', pathlib.Path('/proc/self/maps').read_text())
  if not loader:
    pytest.skip('another C library')
  name, _, settings = given.partition('=')
  # It ignores what it doesn't know, and changes what is out of range.
  listed = subprocess.check_output([loader[0], '--list-tunables'], env={name: settings}, text=True)
  taken = dict(re.findall(r'^(\S+): (\w+)', listed, re.MULTILINE))
  for setting in settings.split(':'):
    key, _, value = setting.partition('=')
    assert int(taken[key], 0) == int(value)


def test_the_settings_of_a_user_stay(tmp_path):
  value = 'glibc.malloc.perturb=0'
  found = _probe(tmp_path, GLIBC_TUNABLES=value)
  assert (found['at start'], found['now']) == ([f'GLIBC_TUNABLES={value}'], value)
