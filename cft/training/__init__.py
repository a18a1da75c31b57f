"""One training: losses, gradient caching, memory, schedule, checkpoint, loop."""

# The modules that other rooms may use.
__all__ = [
    "trainer",  # the loop: `train` carries out a TrainingRun
    "contrastive",  # gradient of one batch, in chunks where memory asks for it
    "losses",  # InfoNCE and distillation targets
    "chunking",  # how much of a batch goes through the model at once
    "memory",  # memory of a step, estimated and measured
    "schedule",  # learning rate of a step
    "best",  # which step was best, and when to give up
    "checkpoint",  # a training's state in one file
]
