"""A finished embedder in use: load, encode, search, export, push, MTEB."""
