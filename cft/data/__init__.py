"""Texts in: training triplets and scored pairs, from files, the hub or generated scenes."""
