"""Every knob of gpt_jax, once: its type, default, permitted values and a line of documentation.

A config file (see configs/) has a `get_config()` that returns a `Config`; flags like
`--config.model.n_layer=4` override it. This module imports nothing but the standard library, so
that `--help` and a wrong flag answer at once, and it sits below every other: all may read it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any


def _knob(
  default: Any,
  doc: str,
  *,
  at_least: float | None = None,
  at_most: float | None = None,
  above: float | None = None,
  below: float | None = None,
  choices: tuple[str, ...] | None = None,
) -> Any:
  """A dataclass field that carries its documentation and its permitted values."""
  limits = [
    (at_least, 'at least', lambda v, limit: v >= limit),
    (above, 'above', lambda v, limit: v > limit),
    (at_most, 'at most', lambda v, limit: v <= limit),
    (below, 'below', lambda v, limit: v < limit),
  ]
  limits = [(limit, words, holds) for limit, words, holds in limits if limit is not None]
  return dataclasses.field(
    default=default, metadata={'doc': doc, 'limits': limits, 'choices': choices}
  )


@dataclasses.dataclass(slots=True)
class ModelConfig:
  """The architecture: GPT-2 (Radford et al. 2019) and the options that keep it readable."""

  n_layer: int = _knob(12, 'Transformer blocks.', at_least=1)
  n_head: int = _knob(12, 'Attention heads in a block; must divide n_embd.', at_least=1)
  n_embd: int = _knob(768, 'Width of the residual stream.', at_least=1)
  block_size: int = _knob(1024, 'Context length, in tokens.', at_least=1)
  vocab_size: int = _knob(0, "Vocabulary entries; 0 takes the tokenizer's.", at_least=0)
  pad_vocab_to: int = _knob(
    128,
    'Embedding rows are rounded up to a multiple of this; padding is never predicted.',
    at_least=1,
  )
  dropout: float = _knob(0.0, 'Rate on embeddings, attention and residuals.', at_least=0, below=1)
  bias: bool = _knob(True, 'Biases in the linear layers and LayerNorms, as GPT-2 has them.')
  tie_embeddings: bool = _knob(True, 'Use the token embedding as the output layer too.')
  attention: str = _knob(
    'auto',
    'Attention kernel: auto is cudnn for bfloat16 without dropout on an NVIDIA GPU, else xla.',
    choices=('auto', 'xla', 'cudnn'),
  )
  dtype: str = _knob(
    'float32', 'Compute type; parameters stay float32.', choices=('float32', 'bfloat16')
  )
  remat: bool = _knob(False, 'Recompute each block in the backward pass: less memory, more time.')
  scan_layers: bool = _knob(
    False, 'Compile one block and scan it over the layers: faster to compile, slower to run.'
  )
  lora_rank: int = _knob(
    0,
    'Rank of low-rank adapters (LoRA) beside the linear layers of the blocks, which alone are '
    'trained then; 0 trains all parameters.',
    at_least=0,
  )
  lora_alpha: float = _knob(16.0, 'Adapters count lora_alpha / lora_rank.', above=0)

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the token embedding: `vocab_size` rounded up to a multiple of `pad_vocab_to`."""
    return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

  @property
  def head_width(self) -> int:
    return self.n_embd // self.n_head


@dataclasses.dataclass(slots=True)
class DataConfig:
  """Which text, cut into tokens how, and in what order it is seen."""

  source: str = _knob(
    'builtin:python-reference',
    'Text: builtin:python-reference, text:GLOB (UTF-8 files), jsonl:GLOB, parquet:GLOB or '
    'parquet:FOLDER (Hugging Face), tfds:NAME, tokens:PATH (ready .bin files of nanoGPT or llm.c); '
    'files may be .gz or .zst. A mixture: 0.7*text:a.txt + 0.3*tfds:NAME; without weights each '
    'counts by its size.',
  )
  text_field: str = _knob(
    'text', 'Field of a JSON line, column of Parquet or feature of TFDS that holds the text.'
  )
  invalid_utf8: str = _knob(
    'fail',
    'What to do with bytes that are not UTF-8; either way told.',
    choices=('fail', 'replace'),
  )
  tokenizer: str = _knob(
    'gpt2',
    'Text to token ids: char, byte, word, gpt2, gpt2:PATH (a vocab.bpe) or hf:PATH (a '
    'tokenizer.json of Hugging Face).',
  )
  min_frequency: int = _knob(
    2, 'Times that a word must occur to get an id (tokenizer word); others are unknown.', at_least=1
  )
  special_tokens: str = _knob(
    '',
    'Tokens to add to char, byte and word, among bos eos pad unk, separated by spaces; byte has '
    'eos, word eos and unk in any case.',
  )
  chunks: str = _knob(
    'windows',
    'How text is cut: windows at random places of one stream of documents; partition of the '
    'stream, each token once an epoch; packed, documents never mixed; sentences, whole ones of one '
    'document.',
    choices=('windows', 'partition', 'packed', 'sentences'),
  )
  min_length: int = _knob(20, 'Tokens in a chunk of sentences, at least.', at_least=2)
  max_length: int = _knob(40, 'Tokens in a chunk of sentences, at most.', at_least=2)
  sentence_end: str = _knob(
    '.', 'Tokens that end a sentence, separated by spaces, for chunks of sentences.'
  )
  overlap: bool = _knob(
    False, 'Begin a chunk of sentences at each sentence, not behind the chunk before.'
  )
  split: str = _knob(
    'position',
    'What is kept for validation: the end of the corpus, documents chosen by the hash of their '
    'tokens, or the validation (else test) split that the source itself has.',
    choices=('position', 'document', 'given'),
  )
  val_fraction: float = _knob(
    0.1, 'Share kept for validation, unless the source gives it.', above=0, below=1
  )
  seed: int = _knob(0, 'Seed of the order in which text is seen.', at_least=0)
  cache_dir: str = _knob(
    '', 'Where token stores are kept; empty: gpt_jax in $XDG_CACHE_HOME or ~/.cache.'
  )
  processes: int = _knob(0, 'Processes that encode text; 0: one a core.', at_least=0)
  verify: bool = _knob(True, 'Hash the token store again before each run: about 1 s for 1.5 GB.')


@dataclasses.dataclass(slots=True)
class TrainConfig:
  """How long and in what portions to train, and how often to look, measure and save."""

  steps: int = _knob(1000, 'Optimizer steps in the whole run.', at_least=1)
  batch_size: int = _knob(64, 'Sequences a step, over all devices and accumulation.', at_least=1)
  gradient_accumulation: int = _knob(
    1, 'Parts that a batch is computed in, to save memory; must divide batch_size.', at_least=1
  )
  seed: int = _knob(
    0, 'Seed of the initial parameters and of dropout.', at_least=0, at_most=2**32 - 1
  )
  log_every: int = _knob(10, 'Steps between training lines in metrics.jsonl.', at_least=1)
  eval_every: int = _knob(250, 'Steps between evaluations.', at_least=1)
  eval_batches: int = _knob(
    20, 'Batches in an evaluation, spread evenly over the validation tokens.', at_least=1
  )
  checkpoint_every: int = _knob(1000, 'Steps between checkpoints.', at_least=1)
  keep_checkpoints: int = _knob(
    2, 'Newest checkpoints kept, beside the one with the best validation loss.', at_least=1
  )
  tensorboard: bool = _knob(False, 'Write TensorBoard files too.')


@dataclasses.dataclass(slots=True)
class OptimizerConfig:
  """AdamW (Loshchilov & Hutter 2019) and its learning-rate schedule."""

  learning_rate: float = _knob(6e-4, 'Peak learning rate.', above=0)
  min_learning_rate: float = _knob(6e-5, 'Learning rate at the end of the schedule.', at_least=0)
  warmup_steps: int = _knob(100, 'Steps of linear warm-up.', at_least=0)
  schedule: str = _knob(
    'cosine',
    'After the warm-up: wsd stays at the peak, then falls linearly over decay_steps.',
    choices=('cosine', 'linear', 'constant', 'wsd'),
  )
  decay_steps: int = _knob(0, 'Steps of the final fall of wsd.', at_least=0)
  weight_decay: float = _knob(0.1, 'Decoupled decay, on matrices and embeddings only.', at_least=0)
  b1: float = _knob(0.9, "Adam's first-moment decay.", at_least=0, below=1)
  b2: float = _knob(0.95, "Adam's second-moment decay.", at_least=0, below=1)
  clip: float = _knob(1.0, 'Largest global norm of the gradient; 0 does not clip.', at_least=0)


@dataclasses.dataclass(slots=True)
class MeshConfig:
  """How devices are arranged; the product must be the number of devices."""

  data: int = _knob(-1, 'Copies that each see other sequences; -1: as many as fit.', at_least=-1)
  fsdp: int = _knob(1, 'Parts that parameters and optimizer state are cut into.', at_least=1)
  tensor: int = _knob(1, 'Parts that heads, MLP and vocabulary are cut into.', at_least=1)
  cpu_devices: int = _knob(
    1,
    'Devices to make of the CPU where there is no accelerator; one a core is fastest for small '
    'models, and each holds a copy of the parameters.',
    at_least=1,
  )


@dataclasses.dataclass(slots=True)
class GenerationConfig:
  """How text is generated: the options of `gpt_jax.sample` and of `generate` and `stream`."""

  max_new_tokens: int = _knob(
    500,
    'Tokens to add to each prompt; beyond the context it slides.',
    at_least=1,
    at_most=2**31 - 1,
  )
  min_new_tokens: int = _knob(0, 'Tokens before which no text ends.', at_least=0)
  temperature: float = _knob(
    0.8, 'Below 1 is bolder, above 1 wilder; 0: always the likeliest.', at_least=0, at_most=1e37
  )
  top_k: int = _knob(200, 'Draw from the k likeliest tokens only; 0: from all.', at_least=0)
  top_p: float = _knob(
    1.0, 'Draw from the likeliest tokens that have this probability together.', above=0, at_most=1
  )
  min_p: float = _knob(
    0.0, 'Draw from tokens at least so likely, as a share of the likeliest.', at_least=0, at_most=1
  )
  typical_p: float = _knob(
    1.0, 'Draw from the most typical tokens that have this probability.', above=0, at_most=1
  )
  repetition_penalty: float = _knob(
    1.0, 'Above 1 makes tokens of the prompt and the text rarer.', at_least=1e-3, at_most=1e3
  )
  presence_penalty: float = _knob(
    0.0, 'Taken from the logits of tokens that the new text has.', at_least=-1e3, at_most=1e3
  )
  frequency_penalty: float = _knob(
    0.0, 'The same, once for each time that it has them.', at_least=-1e3, at_most=1e3
  )
  no_repeat_ngram: int = _knob(
    0, 'No so many tokens in a row come twice within the context; 0: they may.', at_least=0
  )
  num_beams: int = _knob(
    1, 'Above 1: beam search with so many beams, without drawing.', at_least=1, at_most=1024
  )
  length_penalty: float = _knob(
    1.0, 'Beams are compared by log-probability / length ** this.', at_least=-10, at_most=10
  )
  contrastive_alpha: float = _knob(
    0.0,
    'Above 0: contrastive search, which weighs likelihood against likeness to what came before, '
    'among the top_k likeliest tokens (4 to 10 are usual).',
    at_least=0,
    at_most=1,
  )
  draft_tokens: int = _knob(
    4, 'Tokens that a draft model guesses at a time, and one after them.', at_least=1, at_most=64
  )
  seed: int = _knob(0, 'Seed of the draws.', at_least=0, at_most=2**32 - 1)


@dataclasses.dataclass(slots=True)
class Config:
  """One experiment."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  init_from: str = _knob(
    '',
    'Start from the weights of a model: a model directory of Hugging Face or OpenAI, a workdir or '
    'one checkpoint in it; empty: from random ones. The context may be shorter than there.',
  )


@dataclasses.dataclass(frozen=True)
class Knob:
  """A leaf of the config: its dotted key, declaration and value."""

  key: str
  field: dataclasses.Field[Any]
  value: Any


def knobs(config: Any, prefix: str = '') -> Iterator[Knob]:
  """Every leaf of `config`, in the order of declaration."""
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      yield from knobs(value, f'{prefix}{field.name}.')
    else:
      yield Knob(prefix + field.name, field, value)


def to_dict(config: Config) -> dict[str, Any]:
  """`config` as nested plain values, for JSON."""
  return dataclasses.asdict(config)
