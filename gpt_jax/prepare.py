"""Encode a text ahead of training: python -m gpt_jax.prepare --config=configs/gpt2_small.py

Writes the token stores of the config's data.source, as training does when they are missing, and
says what is in them. Interrupted, the same command goes on where it was. --verify reads the stores
again and compares them with their hashes. Exit codes: 0 all is well, 2 something to mend, 75
stopped early.
"""

import time

from absl import flags

from gpt_jax import cli, stopping


def define_flags() -> flags.FlagValues:
  """The command's flags."""
  flag_values = flags.FlagValues()
  flags.DEFINE_boolean(
    'verify', False, 'Read all tokens and compare them with their hashes.', flag_values=flag_values
  )
  return flag_values


def main(flag_values: flags.FlagValues) -> None:
  """Prepares the text of the config and prints what there is."""
  from gpt_jax.data import prepare, progress, store  # slow to import: after the flags are sound

  with stopping.StopRequest() as stop, progress.Bar() as bar:
    prepared = prepare.prepare(flag_values.config.data, progress=bar.show, check=stop.check)
    began = time.monotonic()
    if flag_values.verify:
      prepared.verify(bar.show, stop.check)
    verified = time.monotonic() - began
  for source in prepared.sources:
    print(source.summary())
    if isinstance(source, store.Store):
      files = len(source.manifest.shards)
      print(f'  in {source.directory}: {files} shards, {source.num_bytes / 1e6:,.1f} MB')
  if bar.written.tokens:
    print(
      f'encoded {bar.written.tokens:,} tokens in {bar.seconds:.1f} s: '
      f'{bar.written.characters / bar.seconds / 1e6:.1f}M characters/s, '
      f'{bar.written.tokens / bar.seconds / 1e6:.2f}M tokens/s'
    )
  if flag_values.verify:
    print(f'verified in {verified:.1f} s: all is as it was written')


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=True)
