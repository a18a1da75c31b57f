"""The learning rate, against transformers' schedulers."""

import pytest
import torch
from transformers import get_scheduler

from cft.config.schema import ScheduleKind, ScheduleSettings
from cft.training.schedule import learning_rate, warmup_steps


@pytest.mark.parametrize(
    ("kind", "name"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
def test_every_step_has_the_rate_of_the_transformers_scheduler(kind, name):
    schedule = ScheduleSettings(kind=ScheduleKind(kind), warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-5)
    reference = get_scheduler(name, optimizer, num_warmup_steps=100, num_training_steps=1000)
    for step in range(1000):
        assert learning_rate(schedule, 5e-5, step, 1000) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        reference.step()


def test_the_papers_warm_up_is_100_of_1000_steps():
    assert warmup_steps(ScheduleSettings(), 1000) == 100


def test_without_warm_up_the_first_step_runs_at_the_peak():
    assert learning_rate(ScheduleSettings(warmup_ratio=0.0), 1e-3, 0, 10) == 1e-3
