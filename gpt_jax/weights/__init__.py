"""Models on disk: the checkpoints of runs, and the files of Hugging Face and OpenAI."""
