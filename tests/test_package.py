"""What is built from the tree works without it: installed elsewhere, run from an empty folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
_BUILD = 'import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])("."))'


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
  """A wheel and an sdist, made of a copy of the tree: building leaves files there."""
  folder = tmp_path_factory.mktemp('built') / 'tree'
  hidden = shutil.ignore_patterns('.*', 'runs', 'build', '*.egg-info', '__pycache__')
  shutil.copytree(ROOT, folder, symlinks=True, ignore=hidden)
  for kind in ('build_sdist', 'build_wheel'):
    subprocess.run([sys.executable, '-c', _BUILD, kind], cwd=folder, check=True)
  return {path.suffix: path for path in (*folder.glob('*.whl'), *folder.glob('*.gz'))}


def test_wheel_and_sdist_hold_each_module_and_config(built: dict[str, pathlib.Path]) -> None:
  wanted = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('gpt_jax/**/*.py')}
  wanted |= {f'gpt_jax/configs/{path.name}' for path in ROOT.glob('configs/*.py')}
  wanted |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob('gpt_jax/**/*.html')}
  with zipfile.ZipFile(built['.whl']) as wheel, tarfile.open(built['.gz']) as sdist:
    assert wanted <= set(wheel.namelist())
    files = {file.name.partition('/')[2] for file in sdist.getmembers() if file.isfile()}
    assert wanted <= files


def test_the_installed_command_trains_and_samples_in_an_empty_folder(
  built: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
  venv, empty = tmp_path / 'venv', tmp_path / 'empty'
  empty.mkdir()
  subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
  python = venv / 'bin' / 'python'
  pip = [sys.executable, '-m', 'pip', '--python', str(python), 'install', '--quiet']
  subprocess.run([*pip, '--no-deps', '--no-index', str(built['.whl'])], check=True)
  # What gpt_jax depends on is that of this environment; what is installed comes first.
  (site,) = venv.glob('lib/*/site-packages')
  (site / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
  names = ('PATH', 'HOME', 'JAX_PLATFORMS')
  environment = {name: os.environ[name] for name in names if name in os.environ}
  environment |= {'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  options = {'cwd': empty, 'env': environment, 'text': True, 'capture_output': True}

  def run(*args: str) -> str:
    command = [str(venv / 'bin' / 'gpt-jax'), *args]
    done = subprocess.run(command, **options, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)

  listed = {line.split()[0] for line in run().splitlines() if line.startswith('  ')}
  modules = {path.stem for path in ROOT.glob('gpt_jax/*.py') if 'cli.run(' in path.read_text()}
  assert listed == modules - {'cli'} and 'train' in listed
  assert 'jax' in run('--version')
  short = ['--config.train.steps=2', '--config.train.eval_batches=1', '--config.model.n_layer=1']
  assert 'results in  runs/quickstart' in run('train', '--config=quickstart', *short)
  assert 'The ' in run('sample', '--model=runs/quickstart', '--prompt=The ', '--max_new_tokens=3')
  where = [str(python), '-c', 'import gpt_jax; print(gpt_jax.__file__)']
  assert str(venv) in subprocess.run(where, **options).stdout  # type: ignore[call-overload]
