"""Sequence encoders: Hugging Face and layered."""
