"""Every option of gpt_jax, declared once: its type, default, permitted values and documentation.

A config file (see configs/) has a `get_config()` that returns a `Config`; flags such as
`--config.model.n_layer=4` replace single values. Everything is frozen. Only the standard library is
imported, so that `--help` and a wrong flag answer at once; every other module may import this one.
"""

import dataclasses

from gpt_jax.knobs import knob as _knob


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The architecture: GPT-2 (Radford et al. 2019) and options that keep it readable."""

  kind: str = _knob(
    'gpt',
    'Transformer (gpt), the same with attention to both sides (encoder), both of them, n_layer '
    'blocks each (encoder_decoder), or a recurrent network to compare (lstm).',
    choices=('gpt', 'lstm', 'encoder', 'encoder_decoder'),
  )
  n_layer: int = _knob(12, 'Transformer blocks.', at_least=1, at_most=1000)
  n_head: int = _knob(12, 'Attention heads per block; must divide n_embd.', at_least=1)
  n_embd: int = _knob(768, 'Width of the residual stream.', at_least=1)
  block_size: int = _knob(1024, 'Context length in tokens.', at_least=1)
  vocab_size: int = _knob(0, "Vocabulary size; 0 takes the tokenizer's.", at_least=0)
  pad_vocab_to: int = _knob(
    128, 'Rounds the embedding up to a multiple of this.', at_least=1, at_most=2**16
  )
  dropout: float = _knob(
    0.0, 'Dropout rate on embeddings, attention weights and residual branches.', at_least=0, below=1
  )
  bias: bool = _knob(True, 'Biases in the linear layers and LayerNorms, as in GPT-2.')
  tie_embeddings: bool = _knob(True, 'Share the token embedding with the output layer.')
  attention: str = _knob(
    'auto',
    'Attention kernel; auto is, without dropout, cudnn for bfloat16 on an NVIDIA GPU and splash on '
    'a TPU, else xla.',
    choices=('auto', 'xla', 'cudnn', 'splash'),
  )
  dtype: str = _knob(
    'float32', 'Compute type; parameters stay float32.', choices=('float32', 'bfloat16')
  )
  remat: bool = _knob(False, 'Recompute each block in the backward pass: less memory, more time.')
  remat_keep: str = _knob(
    'nothing', 'What remat keeps of a block; products cost memory.', choices=('nothing', 'products')
  )
  scan_layers: bool = _knob(
    False, 'Compile one block and scan it over the layers: compiles faster, runs slower.'
  )
  lora_rank: int = _knob(
    0, 'Rank of adapters (LoRA) of the linear layers; above 0 only they are trained.', at_least=0
  )
  lora_alpha: float = _knob(16.0, 'Scales the adapters by lora_alpha / lora_rank.', above=0)
  freeze_body: bool = _knob(False, 'Train only the output layer of a classifier, and adapters.')
  clusters: str = _knob(
    '',
    'Ids at which the output layer cuts a vocabulary of words into clusters, such as 4096,16384: '
    'faster for a large one. Empty: one softmax over all.',
  )
  lstm_width: int = _knob(512, 'Width of the states of an lstm.', at_least=1)
  mask_id: int = _knob(
    -1, "Id of the token that hides others, for task masked; -1: the tokenizer's.", at_least=-1
  )
  classes: str = _knob(
    '', 'Classes that a classifier tells apart, separated by commas; empty: those of the data.'
  )
  pooling: str = _knob(
    'mean',
    'What a classifier sees of a document: the mean of its hidden states, or the last.',
    choices=('mean', 'last'),
  )

  @property
  def padded_vocab_size(self) -> int:
    """Rows of the token embedding: `vocab_size` rounded up to a multiple of `pad_vocab_to`."""
    return -(-self.vocab_size // self.pad_vocab_to) * self.pad_vocab_to

  @property
  def head_width(self) -> int:
    return self.n_embd // self.n_head

  @property
  def class_names(self) -> tuple[str, ...]:
    """The classes of a classifier; () for a language model."""
    return tuple(self.classes.split(',')) if self.classes else ()

  @property
  def cluster_starts(self) -> tuple[int, ...]:
    """The first id of each cluster of the output layer but the first; () for one softmax."""
    return tuple(map(int, self.clusters.split(','))) if self.clusters else ()

  @property
  def hidden_width(self) -> int:
    """Width of the last hidden states."""
    return self.lstm_width if self.kind == 'lstm' else self.n_embd


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Which text to use, how to tokenize and chunk it, and in what order to see it."""

  source: str = _knob(
    'builtin:python-reference',
    'Text: builtin:python-reference, text:GLOB (UTF-8 files), jsonl:GLOB, parquet:GLOB or '
    'parquet:FOLDER (Hugging Face), tfds:NAME, tokens:PATH (.bin files of nanoGPT or llm.c); '
    'files may be .gz or .zst. A mixture: 0.7*text:a.txt + 0.3*tfds:NAME; without weights, each '
    'source counts by its size. tfds:NAME[train+test] reads these splits alone.',
  )
  text_field: str = _knob(
    'text', 'Field of a JSON line, column of Parquet or feature of TFDS that holds the text.'
  )
  label_field: str = _knob(
    '', 'Field of a JSON line, column or feature that holds the class of a document; empty: none.'
  )
  template: str = _knob(
    '',
    'How a prompt is written for task instruct, with {prompt} in its place, such as '
    '"Q: {prompt} A: "; for task translate "{prompt}". The sources then have conversations: JSON '
    'lines with instruction and output, perhaps input, or with messages; builtin:instructions, '
    'builtin:dates, builtin:analogies.',
  )
  invalid_utf8: str = _knob(
    'fail',
    'Stop at bytes that are not UTF-8, or replace and count them.',
    choices=('fail', 'replace'),
  )
  tokenizer: str = _knob(
    'gpt2',
    'Tokenizer: char, byte, word, gpt2, gpt2:PATH (a vocab.bpe) or hf:PATH (a tokenizer.json of '
    'Hugging Face).',
  )
  min_frequency: int = _knob(
    2, 'Minimum count of a word for tokenizer word; rarer ones are unk.', at_least=1
  )
  lowercase: bool = _knob(False, 'Lower-case the text, for tokenizer word.')
  special_tokens: str = _knob(
    '',
    'Special tokens to add to char, byte and word: some of bos eos pad unk mask, separated by '
    'spaces; byte always has eos, word eos and unk.',
  )
  chunks: str = _knob(
    'windows',
    'Training examples: windows at random positions of the token stream; partition of the stream, '
    'each token once per epoch; packed documents that do not attend to each other; whole sentences '
    'of one document, packed in the same way.',
    choices=('windows', 'partition', 'packed', 'sentences'),
  )
  min_length: int = _knob(20, 'Minimum tokens in a chunk of sentences.', at_least=2)
  max_length: int = _knob(40, 'Maximum tokens in a chunk of sentences.', at_least=2)
  sentence_end: str = _knob('.', 'Tokens that end a sentence, separated by spaces.')
  overlap: bool = _knob(
    False, 'Start a chunk of sentences at every sentence, not after the previous chunk.'
  )
  row_length: int = _knob(
    0,
    'Tokens in a row of packed documents or sentences, or of documents to classify, which are read '
    'in windows of model.block_size; 0: model.block_size.',
    at_least=0,
  )
  split: str = _knob(
    'position',
    'Validation split: the end of the text (position), documents by a hash of their tokens '
    "(document), or the source's own validation, else test split (given).",
    choices=('position', 'document', 'given'),
  )
  val_fraction: float = _knob(
    0.1,
    'Fraction held out for validation, of what is not for tests, unless the split is given.',
    above=0,
    below=1,
  )
  test_fraction: float = _knob(
    0.0, 'Fraction held out for tests, unless the split is given.', at_least=0, below=1
  )
  seed: int = _knob(0, 'Seed of the order of training examples.', at_least=0, at_most=2**32 - 1)
  cache_dir: str = _knob(
    '', 'Folder of the token stores; empty: gpt_jax in $XDG_CACHE_HOME or ~/.cache.'
  )
  processes: int = _knob(0, 'Processes that encode text; 0: one per core.', at_least=0)
  verify: bool = _knob(True, 'Hash the token store before each run: about 1 s for 1.5 GB.')


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long to train, in what batches, and how often to log, evaluate and save."""

  steps: int = _knob(1000, 'Optimizer steps in the whole run.', at_least=1)
  batch_size: int = _knob(
    64, 'Sequences per step, over all devices and accumulation steps.', at_least=1
  )
  gradient_accumulation: int = _knob(
    1, 'Micro-batches per step, in turn to save memory; must divide batch_size.', at_least=1
  )
  seed: int = _knob(
    0, 'Seed of the initial parameters and of dropout.', at_least=0, at_most=2**32 - 1
  )
  log_every: int = _knob(10, 'Steps between training lines in metrics.jsonl.', at_least=1)
  eval_every: int = _knob(250, 'Steps between evaluations.', at_least=1)
  eval_batches: int = _knob(
    20, 'Batches per evaluation, spread evenly over the validation split.', at_least=1
  )
  checkpoint_every: int = _knob(1000, 'Steps between checkpoints.', at_least=1)
  keep_checkpoints: int = _knob(
    2, 'Newest checkpoints to keep, besides the one with the best validation loss.', at_least=1
  )
  max_minutes: float = _knob(
    0.0,
    'Minutes after which the process saves and stops, as by SIGTERM; the same command goes on. '
    '0: none.',
    at_least=0,
  )
  patience: int = _knob(
    0, 'Evaluations in a row without a lower validation loss that end the run; 0: any.', at_least=0
  )
  tensorboard: bool = _knob(False, 'Write TensorBoard files too.')
  trackers: str = _knob(
    '', 'Trackers to send metrics to: some of wandb, trackio, mlflow, separated by spaces.'
  )
  deterministic: bool = _knob(False, 'On GPUs: ask XLA for the same bits each time, at some cost.')
  max_bad_steps: int = _knob(
    10,
    'Steps in a row without a finite loss and gradient, which change nothing, until the run goes '
    'back to its last checkpoint and on with the batches after them.',
    at_least=1,
  )
  spike_zscore: float = _knob(
    0.0,
    'Standard deviations by which a loss may exceed the mean of the last 128 until the run goes '
    'back in the same way; 0: any.',
    at_least=0,
  )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW (Loshchilov & Hutter 2019) or Muon (Jordan 2024), and the learning-rate schedule."""

  kind: str = _knob(
    'adamw',
    'What trains the matrices of the blocks: adamw or, with the same learning rates, muon; all '
    'else is trained by adamw.',
    choices=('adamw', 'muon'),
  )
  learning_rate: float = _knob(6e-4, 'Peak learning rate.', above=0, at_most=1e6)
  min_learning_rate: float = _knob(
    6e-5, 'Learning rate at the end of the schedule; constant ignores it.', at_least=0
  )
  warmup_steps: int = _knob(100, 'Steps of linear warm-up.', at_least=0)
  schedule: str = _knob(
    'cosine',
    'Schedule after the warm-up; wsd stays at the peak, then decays linearly over decay_steps.',
    choices=('cosine', 'linear', 'constant', 'wsd'),
  )
  decay_steps: int = _knob(0, 'Steps of the final decay of wsd.', at_least=0)
  weight_decay: float = _knob(
    0.1, 'Decoupled weight decay, on matrices and embeddings only.', at_least=0, at_most=1e6
  )
  b1: float = _knob(0.9, "Decay of Adam's first moment.", at_least=0, at_most=1 - 1e-6)
  b2: float = _knob(0.95, "Decay of Adam's second moment.", at_least=0, at_most=1 - 1e-6)
  clip: float = _knob(1.0, 'Maximum global norm of the gradient; 0 does not clip.', at_least=0)
  cautious: bool = _knob(False, 'Decay a weight only where its update, too, moves it towards zero.')
  ema_decay: float = _knob(
    0.0,
    'Decay per step of an average of the parameters, which is what is evaluated and what commands '
    'read from a checkpoint; 0: no average.',
    at_least=0,
    at_most=1 - 1e-6,
  )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How devices are arranged; the product of the axes must be the number of devices."""

  data: int = _knob(-1, 'Devices that split the batch; -1: as many as fit.', at_least=-1)
  fsdp: int = _knob(1, 'Devices that also shard parameters and optimizer state.', at_least=1)
  tensor: int = _knob(1, 'Devices that shard heads, MLP and vocabulary.', at_least=1)
  cpu_devices: int = _knob(
    1, 'Devices to simulate on a CPU without accelerator.', at_least=1, at_most=512
  )


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
  """How the processes of a run find each other: one a host on TPU, one a GPU on Slurm.

  TPU, Slurm and Open MPI say all of it, and a single process needs none of it.
  """

  coordinator: str = _knob(
    '', 'Address HOST:PORT of process 0; empty: $JAX_COORDINATOR_ADDRESS, or what the cluster says.'
  )
  count: int = _knob(
    0, 'Processes in all; 0: $JAX_NUM_PROCESSES, or what the cluster says.', at_least=0
  )
  index: int = _knob(
    -1, 'Which of them this is; -1: $JAX_PROCESS_ID, or what the cluster says.', at_least=-1
  )
  initialization_timeout: int = _knob(300, 'Seconds to wait for others at the start.', at_least=1)
  heartbeat_timeout: int = _knob(
    100, 'Seconds without a sign of life until a process counts as dead and all end.', at_least=10
  )
  shutdown_timeout: int = _knob(
    300, 'Seconds that a process waits for the others at its end.', at_least=1
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  processes: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
  task: str = _knob(
    'next_token',
    'What is learned: to predict the next token, to classify documents by data.label_field, to '
    'guess masked tokens from both sides, to answer prompts of conversations (instruct), to '
    'translate prompts to their responses, or to write the spans that a text lacks.',
    choices=('next_token', 'classify', 'masked', 'instruct', 'translate', 'spans'),
  )
  init_from: str = _knob(
    '',
    'Model to start from: a workdir, one checkpoint in it, a model directory of Hugging Face or '
    'OpenAI, or a name such as gpt2; empty: random parameters. The context may be shorter than the '
    'original.',
  )

  @property
  def has_segments(self) -> bool:
    """Whether rows have parts that must not attend to each other."""
    by_task = {'classify': True, 'instruct': True, 'translate': False}
    return by_task.get(self.task, self.data.chunks in ('packed', 'sentences'))

  @property
  def row_length(self) -> int:
    """Tokens in a row of a batch."""
    return (self.has_segments and self.data.row_length) or self.model.block_size
