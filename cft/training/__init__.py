"""One training: losses, gradient caching, memory, schedule, checkpoint, loop."""
