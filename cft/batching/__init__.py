"""Token sequences laid out for a forward pass: prefix trees where they are exact, padded rows elsewhere."""

__all__ = [
    "layout",  # Batching: the kind of batch that a trial found exact for a model, and its layouts
    "trials",  # what trials of a model found, kept; find_batching: the one at loading
    "places",  # the number of every token in a whole batch, for those of a chunk of it
    "prefix_tree",  # build_tree and the attention over it
]
