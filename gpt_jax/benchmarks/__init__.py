"""What `python -m gpt_jax.bench` measures, a module for each mode, and the peers to compare to."""
