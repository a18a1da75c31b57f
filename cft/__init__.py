"""Contrastive fine-tuning of small causal language models into text embedders (arXiv 2408.00690)."""

__version__ = "0.1.0"
