"""Sequence encoders: Hugging Face, recurrent, layered."""
