"""What JAX has to be told before it first looks at the devices, and what the devices can bear."""

import os

import jax

from gpt_jax import config as config_lib


def set_up(mesh: config_lib.MeshConfig) -> None:
  """Makes `mesh.cpu_devices` devices of the CPU, unless XLA_FLAGS says how many.

  Has no effect on accelerators. A product of a small batch is too little work to share out among
  cores; halves of the batch on devices of their own keep two cores busy: a step of
  configs/shakespeare_char_cpu.py took 51 ms on one device and takes 42 ms on two.
  """
  if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
    jax.config.update('jax_num_cpu_devices', mesh.cpu_devices)


def one_step_at_a_time() -> bool:
  """Whether a step must end before the next is dispatched: True for several devices of one CPU.

  They share a pool of threads in which they wait for each other; with several steps in flight the
  waiting ones can take all of it, and XLA aborts the process after 40 seconds.
  """
  return jax.default_backend() == 'cpu' and jax.local_device_count() > 1
