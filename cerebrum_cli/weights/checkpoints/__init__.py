"""Checkpoints: models as folders in Hugging Face's layout, with a configuration, safetensors and a tokenizer."""
