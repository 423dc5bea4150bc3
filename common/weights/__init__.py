"""Weights on disk: Hugging Face GPT-2 folders, OpenAI's TensorFlow checkpoints, state dicts, Parallax checkpoints."""
