"""Texts in: training triplets and scored pairs, from files, the hub or docstrings."""

__all__ = [
    "docstrings",  # what installed packages say of their functions
    "files",  # a user's file as triplets, scored pairs or texts
    "preview",  # a first look at a user's files
    "records",  # a triplet, a scored pair
    "retrieval",  # queries, documents and judgements
    "sampling",  # which rows make a batch
    "sts",  # the sets of an evaluation
    "texts",  # texts that a caller hands over
    "training_data",  # the triplets and development pairs of a training
]
