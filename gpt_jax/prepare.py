"""Encode a text ahead of training: python -m gpt_jax.prepare --config=configs/gpt2_small.py

Writes the token stores of the config's data.source, as train does if they are missing, and prints
what they hold. --verify reads the stores again and compares them with their hashes. Exit codes: 0
finished, 2 user error, 75 stopped early.
"""

import time

from absl import flags

from gpt_jax import cli, progress, shutdown
from gpt_jax import config as config_lib


def define_flags() -> flags.FlagValues:
  flag_values = flags.FlagValues()
  flags.DEFINE_boolean(
    'verify', False, 'Read all tokens and compare them with their hashes.', flag_values=flag_values
  )
  return flag_values


def main(flag_values: flags.FlagValues, config: config_lib.Config) -> None:
  with shutdown.Guard() as stop, progress.Bar(keep=True, check=stop.check) as bar:
    from gpt_jax.data import prepare, store  # slow: after the flags are known to be valid

    start = time.monotonic()
    prepared = prepare.prepare(config.data, progress=bar.show)
    seconds = time.monotonic() - start
    if flag_values.verify:
      prepared.verify(progress=bar.show)
  for source in prepared.sources:
    print(source.summary())
    if isinstance(source, store.Store):
      size = f'{len(source.manifest.shards)} shards, {source.tokens.nbytes / 1e6:,.1f} MB'
      print(f'  in {source.directory}: {size}')
  if new := [source.manifest for source in prepared.new_stores]:
    tokens = sum(manifest.tokens for manifest in new)
    characters = sum(manifest.characters for manifest in new)
    print(
      f'encoded {tokens:,} tokens in {seconds:.1f} s: {characters / seconds / 1e6:.1f}M '
      f'characters/s, {tokens / seconds / 1e6:.2f}M tokens/s'
    )
  if flag_values.verify:
    print('verified: all tokens are as they were written')


if __name__ == '__main__':
  cli.run(main, define_flags(), doc=__doc__, takes_config=True, sections=('data',), reports=True)
