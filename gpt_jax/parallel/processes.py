"""What has to be said to JAX before it first looks at the devices."""

import os

import jax

from gpt_jax import config as config_lib


def set_up(mesh: config_lib.MeshConfig) -> None:
  """Makes `mesh.cpu_devices` devices of the CPU, unless XLA_FLAGS says how many.

  Has no effect on accelerators. A product of a small batch is too little work to share out among
  cores; halves of the batch on devices of their own keep two cores busy: a step of
  configs/shakespeare_char_cpu.py took 51 ms on one device and takes 40 ms on two.
  """
  if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', mesh.cpu_devices)
