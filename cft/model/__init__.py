"""From a model's name to unit vectors: where it comes from, how its texts are tokenised, what is trained on it."""

__all__ = [
    "backbone",  # load_tokenizer: a base model's tokenizer alone
    "adapters",  # trained weights to start from: fetch_adapter, attach
    "contract",  # Contract: everything that a vector depends on
    "dropout",  # LoRA's dropout by the token: Draw, drawing
    "embedder",  # Embedder: load, encode, save
    "layer_weights",  # the weighted sum of all layers' states, and its weights
    "lora",  # add_lora, find_targets, trainable
    "minicpm",  # MiniCPM's configuration in Granite's words
    "precision",  # whether a model computes sooner in bfloat16 on this CPU
    "published",  # what sentence-transformers records of a model's way to its vectors
    "quantize",  # vectors in fewer bytes, and back
    "sources",  # fetch: a base model's files on this machine
    "tokenizer",  # token ids of prompted texts
    "weights",  # trained weights on disk
]
