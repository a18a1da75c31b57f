"""A finished embedder in use: load, encode, search, export, push, MTEB."""

__all__ = [
    "encode",  # a file's texts as vectors
    "export",  # a folder for sentence-transformers, transformers, PEFT or ONNX Runtime
    "load",  # an embedder by a run's name, a choice of conf/model or a folder
    "merge",  # one embedder out of several trainings
    "mine",  # triplets out of pairs, by hard negatives
    "mteb",  # what the package mteb evaluates
    "push",  # to the Hugging Face hub
    "served",  # whether a server gives an embedder's vectors
    "similar",  # search: a file's texts nearest to queries
]
