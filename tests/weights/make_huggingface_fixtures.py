"""Writes fixtures/huggingface/: seeded GPT-2s as `transformers` saves them, with their logits.

    pip install torch transformers safetensors
    python tests/weights/make_huggingface_fixtures.py

Written with transformers 5 and torch 2.13. The tests need neither.
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent / 'fixtures' / 'huggingface'

# Odd shapes on purpose, so that no two sizes are mistaken for each other.
MODELS = {
  'tied': {'n_layer': 2, 'n_head': 2, 'n_embd': 8, 'vocab_size': 101, 'n_positions': 16},
  'untied': {
    'n_layer': 1,
    'n_head': 3,
    'n_embd': 12,
    'vocab_size': 37,
    'n_positions': 7,
    'tie_word_embeddings': False,
  },
  'sharded': {'n_layer': 3, 'n_head': 1, 'n_embd': 5, 'vocab_size': 64, 'n_positions': 11},
  'bare': {'n_layer': 2, 'n_head': 5, 'n_embd': 20, 'vocab_size': 50, 'n_positions': 9},
}


def main() -> None:
  for seed, (name, sizes) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
      for parameter in model.parameters():  # larger than at initialisation, biases included
        parameter.normal_(0, 0.3)
      tokens_BL = torch.randint(config.vocab_size, (3, config.n_positions))
      logits_BLV = model(tokens_BL).logits
    folder = FOLDER / name
    saved = model.transformer if name == 'bare' else model
    saved.save_pretrained(folder, max_shard_size='2KB' if name == 'sharded' else '1GB')
    np.savez(folder / 'expected.npz', tokens_BL=tokens_BL.numpy(), logits_BLV=logits_BLV.numpy())


if __name__ == '__main__':
  main()
