"""Scripts do what their dry runs print, and exit codes decide what happens next."""

import pathlib
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch'), ROOT / '.ci' / 'run'])
LAUNCHERS = sorted(set(LAUNCH.iterdir()) - {LAUNCH / 'quickstart.sh', LAUNCH / 'test.sh'})
OPTIONS = ['--config=configs/quickstart.py', '--workdir=/a b/run']


def test_shellcheck_finds_nothing():
  shellcheck = pathlib.Path(sysconfig.get_path('scripts')) / 'shellcheck'
  assert subprocess.run([shellcheck, *SCRIPTS]).returncode == 0


@pytest.mark.parametrize('launcher', LAUNCHERS, ids=lambda path: path.name)
def test_a_launcher_is_a_page_that_says_what_it_costs(launcher):
  lines = launcher.read_text(encoding='utf-8').splitlines()
  head = '\n'.join(line for line in lines if line.startswith('#'))
  assert len(lines) <= 90
  assert '# Cost: ' in head
  assert '# Preemption: ' in head


@pytest.mark.parametrize(
  'command',
  [
    'gpu.sh',
    'slurm.sbatch',
    'local_processes.sh 3',
    *(
      f'tpu_vm.sh {verb} name zone'
      for verb in ('create', 'install', 'train', 'log', 'stop', 'delete')
    ),
  ],
)
def test_a_dry_run_prints_what_a_run_does(machine, command):
  script, *args = command.split()
  dry = machine.run('bash', f'launch/{script}', '--dry-run', *args, *OPTIONS)
  assert dry.returncode == 0
  assert machine.calls() == []

  def calls() -> list[list[str]]:
    """The recorded calls; the port is a free one, and the processes start together."""
    return sorted(
      [re.sub('127.0.0.1:[0-9]+', 'ADDRESS', word) for word in call] for call in machine.calls()
    )

  machine.run('bash', f'launch/{script}', *args, *OPTIONS)
  did = calls()
  assert did
  machine.run('bash', '-c', dry.stdout)
  assert calls() == did


def test_measurements_go_on_after_one_that_fails_which_is_told(machine, tmp_path):
  script, out = 'launch/measure_gpu.sh', str(tmp_path / 'out')
  peers = {'NANOGPT': '/nano', 'PEER_PYTHON': 'python', 'TEXT': '/sea.txt'}
  dry = machine.run(script, '--dry-run', out, **peers)
  lines = [line.partition(' > ') for line in dry.stdout.splitlines()]
  commands = [shlex.split(command) for command, _, _ in lines]
  assert machine.calls() == []
  modes = {command[3] for command in commands if command[2] == 'gpt_jax.bench'}
  assert modes == {'train', 'decode', 'startup'}
  done = machine.run(script, out, **peers)
  assert done.returncode == 0
  assert machine.calls() == commands
  kept = {line[2] for line, command in zip(lines, commands, strict=True) if '--json' in command}
  assert kept == {str(path) for path in (tmp_path / 'out').glob('*.json')} and kept
  failed = machine.run(script, out, JAX_NUM_PROCESSES='3', **peers)  # that python exits with 2
  assert (failed.returncode, failed.stderr.count('failed')) == (1, len(commands))


@pytest.mark.parametrize('script', ['local_processes.sh', 'measure_gpu.sh', 'tpu_vm.sh'])
def test_missing_arguments_are_a_user_error(machine, script):
  result = machine.run(f'launch/{script}', '--config=configs/quickstart.py')
  assert result.returncode == 2
  assert f'launch/{script}' in result.stderr
  assert machine.calls() == []


def test_gpu_runs_one_process_with_flags_that_jax_knows(machine):
  machine.run('launch/gpu.sh', *OPTIONS, XLA_FLAGS='--xla_mine=1')
  (call,) = machine.calls()
  assert call[-5:] == ['python', '-m', 'gpt_jax.train', *OPTIONS]
  *flags, mine = machine.variables()[0]['XLA_FLAGS'].split()
  # Of two equal flags the last one counts.
  assert mine == '--xla_mine=1'
  assert flags
  # An unknown flag ends the process here.
  program = (
    'from jaxlib import xla_client\n'
    'xla_client.CompileOptions().executable_build_options.debug_options'
  )
  env = {'XLA_FLAGS': ' '.join(flags)}
  assert subprocess.run([sys.executable, '-c', program], env=env).returncode == 0


@pytest.mark.parametrize(
  ('code', 'comment', 'requeued', 'new_comment'),
  [
    (0, '', False, ''),
    (2, '', False, ''),
    (75, '', True, ''),
    (75, 'failures=3', True, ''),
    (1, '', True, 'failures=1'),
    (1, 'what somebody wrote', True, 'failures=1'),
    (139, 'failures=2', True, 'failures=3'),
    (139, 'failures=3', False, ''),
  ],
)
def test_slurm_requeues_by_exit_code(machine, code, comment, requeued, new_comment):
  result = machine.run('bash', 'launch/slurm.sbatch', EXIT_CODE=str(code), COMMENT=comment)
  assert result.returncode == code
  expected = []
  if new_comment:
    expected.append(['scontrol', 'update', 'JobId=7', f'Comment={new_comment}'])
  if requeued:
    expected.append(['scontrol', 'requeue', '7'])
  assert [call for call in machine.calls() if call[0] == 'scontrol'] == expected


def test_slurm_signals_the_tasks_and_has_one_for_each_gpu():
  text = (LAUNCH / 'slurm.sbatch').read_text(encoding='utf-8')
  options = dict(re.findall(r'^#SBATCH --([a-z-]+)=?(.*)$', text, flags=re.MULTILINE))
  # With B: in front the batch script would get it instead.
  assert re.fullmatch(r'TERM@\d+', options['signal'])
  assert 'requeue' in options
  assert options['open-mode'] == 'append'
  assert options['ntasks-per-node'] == options['gpus-per-node']
  assert 'gpus-per-task' not in options


def test_local_processes_meet_at_one_address_and_the_highest_exit_code_counts(machine):
  # The first process exits with 2, the last one with 0.
  assert machine.run('launch/local_processes.sh', '3', *OPTIONS).returncode == 2
  variables = machine.variables()
  assert sorted(each['JAX_PROCESS_ID'] for each in variables) == ['0', '1', '2']
  assert {each['JAX_NUM_PROCESSES'] for each in variables} == {'3'}
  assert len({each['JAX_COORDINATOR_ADDRESS'] for each in variables}) == 1


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_local_processes_are_told_to_stop_and_waited_for(machine, signum):
  machine.install(
    'bin/python',
    """#!/usr/bin/env bash
[[ $1 == -c ]] && exec "$REAL_PYTHON" "$@"
trap 'kill $!; sleep 0.2; touch "$HOME/stopped.$$"; exit 75' TERM
sleep 30 &
touch "$HOME/started.$$"
wait
""",
  )
  command = ['launch/local_processes.sh', '2', *OPTIONS]
  with subprocess.Popen(command, env=machine.env, cwd=ROOT) as process:
    deadline = time.monotonic() + 30
    while len(list(machine.home.glob('started.*'))) < 2 and time.monotonic() < deadline:
      time.sleep(0.01)
    process.send_signal(signum)
    assert process.wait(timeout=30) == 75
  assert len(list(machine.home.glob('stopped.*'))) == 2


def test_tpu_workers_pass_on_options_output_and_exit_code(machine):
  machine.install(
    'bin/gcloud',
    """#!/usr/bin/env bash
for word; do [[ $word == --command=* ]] && cd && exec bash -c "${word#--command=}"; done
""",
  )
  machine.install(
    'gpt_jax/.venv/bin/python',
    """#!/usr/bin/env bash
printf '<%s>' "$LIBTPU_INIT_ARGS" "$@"
exit 75
""",
  )
  for _ in range(2):
    result = machine.run('launch/tpu_vm.sh', 'train', 'name', 'zone', *OPTIONS, LIBTPU_INIT_ARGS='')
    assert result.stdout == '<><-m><gpt_jax.train><' + '><'.join(OPTIONS) + '>'
    assert result.returncode == 75
