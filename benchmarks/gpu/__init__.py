"""The stages of benchmarks/gpu_kit.py, and what they share."""
