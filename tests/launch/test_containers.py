"""The files for clusters hold what the processes need to meet, and know the exit codes."""

import configparser
import pathlib
import re
import subprocess
import sysconfig
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'


def _load(name: str) -> dict[str, Any]:
  return yaml.safe_load((LAUNCH / name).read_text(encoding='utf-8'))


def _job() -> dict[str, Any]:
  (replicated,) = _load('jobset.yaml')['spec']['replicatedJobs']
  return replicated['template']['spec']


def _container() -> dict[str, Any]:
  (container,) = _job()['template']['spec']['containers']
  return container


def _pod_env() -> dict[str, Any]:
  return {entry['name']: entry for entry in _container()['env']}


def _lint(program: str, *args: str | pathlib.Path, text: str | None = None) -> None:
  """Runs a linter that pip installed."""
  command = [pathlib.Path(sysconfig.get_path('scripts')) / program, *args]
  assert subprocess.run(command, input=text, text=True).returncode == 0


def test_pods_form_one_group():
  jobset, job = _load('jobset.yaml'), _job()
  env = _pod_env()
  assert job['completionMode'] == 'Indexed'
  assert job['parallelism'] == job['completions'] == int(env['JAX_NUM_PROCESSES']['value']) > 1
  index = env['JAX_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']
  assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  # Pod 0 of job 0 of the replicated job; the subdomain is the JobSet's name.
  name = jobset['metadata']['name']
  (replicated,) = jobset['spec']['replicatedJobs']
  assert replicated['replicas'] == 1
  address, port = env['JAX_COORDINATOR_ADDRESS']['value'].split(':')
  assert address == f'{name}-{replicated["name"]}-0-0.{name}'
  assert port.isdigit()
  assert all(jobset['spec']['network'].values())


def test_pods_are_replaced_after_75_and_the_jobset_fails_after_2():
  job, policy = _job(), _load('jobset.yaml')['spec']['failurePolicy']
  actions: dict[int, str] = {}
  for rule in job['podFailurePolicy']['rules']:
    if on_exit := rule.get('onExitCodes'):
      assert on_exit['containerName'] == _container()['name']
      assert on_exit['operator'] == 'In'
      actions |= dict.fromkeys(on_exit['values'], rule['action'])
  # Ignore: a new pod, not counted. FailJob's reason is PodFailurePolicy, any other code's isn't.
  assert actions == {2: 'FailJob', 75: 'Ignore'}
  assert job['backoffLimit'] == 0
  assert job['template']['spec']['restartPolicy'] == 'Never'
  (rule,) = policy['rules']
  assert (rule['action'], rule['onJobFailureReasons']) == ('FailJobSet', ['PodFailurePolicy'])
  assert 0 < policy['maxRestarts'] < 10
  # The default, 30 s, is too short for a step and a checkpoint.
  assert job['template']['spec']['terminationGracePeriodSeconds'] >= 120


def test_pods_keep_their_run_on_the_shared_volume_and_have_the_flags_of_gpu_sh(machine):
  container = _container()
  # Arguments alone, so that the image's Python stays process 1.
  assert 'command' not in container
  mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
  (claim,) = (
    volume['name']
    for volume in _job()['template']['spec']['volumes']
    if 'persistentVolumeClaim' in volume
  )
  for option in ('--workdir', '--config.data.cache_dir'):
    (path,) = (arg.split('=')[1] for arg in container['args'] if arg.startswith(f'{option}='))
    assert path.startswith(f'{mounts[claim]}/')
  machine.run('launch/gpu.sh')
  for name, value in machine.variables()[0].items():
    assert _pod_env()[name]['value'].split() == value.split()


@pytest.mark.parametrize('block', ['setup', 'run'])
def test_shellcheck_finds_nothing_in_skypilots_scripts(block):
  _lint('shellcheck', '--shell=bash', '-', text=_load('skypilot.yaml')[block])


def test_skypilot_starts_a_process_on_each_node(machine):
  task = _load('skypilot.yaml')
  assert task['resources']['job_recovery'] == {'recover_on_exit_codes': [75]}
  machine.install('gpt_jax_venv/bin/python')
  nodes = {
    'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
    'SKYPILOT_NUM_NODES': '2',
    'SKYPILOT_NODE_RANK': '1',
  }
  machine.run('bash', '-c', task['run'], **task['envs'], **nodes)
  (call,), (variables,) = machine.calls(), machine.variables()
  assert variables['JAX_COORDINATOR_ADDRESS'].startswith('10.0.0.1:')
  assert (variables['JAX_NUM_PROCESSES'], variables['JAX_PROCESS_ID']) == ('2', '1')
  (workdir,) = (word for word in call if word.startswith('--workdir='))
  (mount,) = task['file_mounts']
  assert workdir.startswith(f'--workdir={mount}/')


@pytest.mark.parametrize(
  ('platform', 'package'), [('cpu', '.'), ('cuda', '.[cuda]'), ('tpu', '.[tpu]'), ('gpu', None)]
)
def test_the_image_installs_what_its_platform_needs(machine, platform, package):
  text = (LAUNCH / 'Dockerfile').read_text(encoding='utf-8').replace('\\\n', ' ')
  (command,) = re.findall(r'^RUN (.*)$', text, flags=re.MULTILINE)
  result = machine.run('sh', '-c', command, PLATFORM=platform)
  if package is None:
    assert result.returncode == 2
    assert machine.calls() == []
    return
  assert machine.calls()[0][-1] == package
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  assert platform == 'cpu' or platform in setup['options.extras_require']


def test_hadolint_finds_nothing():
  # It looks into the shell of RUN, too.
  _lint('hadolint', LAUNCH / 'Dockerfile')


def test_python_is_process_1_of_the_image():
  text = (LAUNCH / 'Dockerfile').read_text(encoding='utf-8')
  assert re.findall('^ENTRYPOINT (.*)$', text, flags=re.MULTILINE) == [
    '["python", "-m", "gpt_jax.train"]'
  ]
