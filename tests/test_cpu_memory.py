"""Tests of cpu_memory: a process touches the memory that it frees again, instead of new pages."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='malloc of the GNU C library'
)

# A config file that says how many pages Linux gives for memory that was freed; the command ends.
_IN_A_COMMAND = """
import ctypes, os, resource
libc, size = ctypes.CDLL(None), 256 << 20
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  piece = libc.malloc(size)
  ctypes.memset(piece, 1, size)
  libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
os._exit(7)
"""

# The same for the temporary memory of a program on the CPU.
_IN_JAX = """
import resource
from gpt_jax import config, cpu_memory
from gpt_jax.parallel import mesh

cpu_memory.keep()
mesh.start(config.MeshConfig())
import jax, jax.numpy as jnp

program = jax.jit(lambda x: jnp.outer(x, x) @ x)  # XLA writes down the factors of a product
x = jnp.arange(4096.0)
faults = []
for _ in range(20):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  x = program(x)
  jax.block_until_ready(x)
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[10])  # a few times it takes another place
"""


def _faults(*arguments, returncode=0, **variables):
  env = {key: value for key, value in os.environ.items() if key != 'GLIBC_TUNABLES'} | variables
  done = subprocess.run([sys.executable, *arguments], env=env, stdout=subprocess.PIPE, text=True)
  assert done.returncode == returncode
  return int(done.stdout)


def _command(tmp_path, **variables):
  (tmp_path / 'probe.py').write_text(_IN_A_COMMAND)
  command = ('-m', 'gpt_jax.train', f'--config={tmp_path}/probe.py')
  return _faults(*command, returncode=7, **variables)


def test_a_command_keeps_what_it_frees(tmp_path):
  assert _command(tmp_path) < 100


def test_the_settings_of_a_user_stay(tmp_path):
  assert _command(tmp_path, GLIBC_TUNABLES='glibc.malloc.hugetlb=0') > 100


def test_a_program_uses_the_memory_of_the_last_one_again():
  assert _faults('-c', _IN_JAX) < 100
