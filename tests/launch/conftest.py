"""A machine whose programs (gcloud, srun, python, …) only record how they are called."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Records the variables of JAX, its name and its arguments; one file a call.
_RECORDER = r"""#!/usr/bin/env bash
[[ $1 == -c ]] && exec "$REAL_PYTHON" "$@"
{
  for name in ${!JAX_*} ${!XLA_*} ${!LIBTPU_*}; do printf '%s\0' "$name=${!name}"; done
  printf '%s\0' "${0##*/}" "$@"
} > "$HOME/call.$EPOCHREALTIME.$$"
case ${0##*/} in
  squeue) echo "${COMMENT-}" ;;
  srun) exit "${EXIT_CODE:-0}" ;;
  python) exit "$((${JAX_NUM_PROCESSES:-1} - ${JAX_PROCESS_ID:-0} - 1))" ;;
esac
"""


class Machine:
  """A home folder and a path on which recorders stand in for programs."""

  def __init__(self, home: pathlib.Path):
    self.home = home
    (home / 'bin').mkdir()
    for name in ('python', 'gcloud', 'git', 'pip', 'srun', 'scontrol', 'squeue'):
      self.install(f'bin/{name}')
    self.env = {
      'PATH': f'{home / "bin"}:{os.environ["PATH"]}',
      'HOME': str(home),
      'REAL_PYTHON': sys.executable,
      'SLURM_JOB_ID': '7',
    }

  def install(self, path: str, script: str = _RECORDER) -> None:
    """Puts a script at a path below the home folder."""
    file = self.home / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(script)
    file.chmod(0o755)

  def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in the checkout and forgets the calls before it."""
    for call in self.home.glob('call.*'):
      call.unlink()
    return subprocess.run(
      command, env=self.env | env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )

  def calls(self) -> list[list[str]]:
    """The words of each call, in their order; variables of JAX come first."""
    return [call.read_text().split('\0')[:-1] for call in sorted(self.home.glob('call.*'))]

  def variables(self) -> list[dict[str, str]]:
    """The variables of JAX that each call saw."""
    return [
      dict(word.split('=', 1) for word in call if re.match('[A-Z_]+=', word))
      for call in self.calls()
    ]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)
