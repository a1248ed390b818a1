"""Text to batches: sources -> tokenizers -> token store on disk -> batch = f(store, seed, step)."""
