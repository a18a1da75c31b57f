"""From a model's name to unit vectors: sources, tokenizer, backbone, LoRA, adapters, contract, Embedder."""
