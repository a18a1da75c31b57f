"""Scores of an embedder, and how sure they are."""

__all__ = [
    "bootstrap",  # confidence intervals and verdicts by resampling pairs
    "layer_scores",  # scores of every layer with every pooling
    "retrieval",  # exact search, and measures a query
    "overlap",  # texts of the test sets that were trained on
    "pairs",  # human scores, recurring pairs and seen sentences, kept beside an evaluation
    "scores",  # Spearman correlation and held-out triplets: evaluated, saved and loaded
    "vector_cache",  # an embedder that keeps its vectors on disk
]
