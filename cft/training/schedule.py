"""The learning rate over the steps of a training."""

import math

from cft.config.schema import ScheduleKind, ScheduleSettings


def warmup_steps(schedule: ScheduleSettings, steps: int) -> int:
    """How many of `steps` the warm-up takes."""
    return round(schedule.warmup_ratio * steps)


def learning_rate(schedule: ScheduleSettings, peak: float, step: int, steps: int) -> float:
    """Learning rate of one step: linear warm-up from 0 to the peak, then the decay that the schedule names.

    Args:
        schedule: kind and share of warm-up.
        peak: the learning rate after warm-up.
        step: 0 for the first step; it runs at 0 when there is a warm-up, as in transformers' schedulers.
        steps: of the whole training.

    Source: the cosine is Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts.
    """
    warmup = warmup_steps(schedule, steps)
    if step < warmup:
        return peak * step / warmup
    if schedule.kind is ScheduleKind.constant:
        return peak
    progress = (step - warmup) / max(steps - warmup, 1)
    if schedule.kind is ScheduleKind.linear:
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))
