"""Training can start in a program that has used JAX, unless it needs devices of its own making."""

import jax

from gpt_jax import config as config_lib
from gpt_jax.parallel import mesh as mesh_lib
from tests import raised


def test_devices_of_the_cpu_are_made_before_jax_is_used(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '')
  count = jax.device_count()
  mesh_lib.start(config_lib.MeshConfig(cpu_devices=1))
  assert jax.device_count() == count
  error = raised.user_error(mesh_lib.start, config_lib.MeshConfig(cpu_devices=count + 1))
  assert error.key == 'mesh.cpu_devices'
