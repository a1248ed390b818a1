"""The two ways a command ends early on purpose; `gpt_jax.cli` turns them into exit codes."""


class UserError(Exception):
  """Something that the user can mend: one paragraph that names the fix, exit code 2."""


class Stopped(Exception):
  """The run was asked to stop and has saved what it needs to go on: exit code 75."""
