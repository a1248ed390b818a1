"""The machine that the tests see: eight devices made of the CPU, unless the user says otherwise."""

import os

# Read when JAX first looks for devices, so they are set before any test imports it.
_DEVICES = '--xla_force_host_platform_device_count'

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if _DEVICES not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}=8'.strip()
