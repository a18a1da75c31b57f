"""Scores of an embedder and how sure they are: Spearman correlation, vector cache, bootstrap."""
