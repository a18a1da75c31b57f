"""As many threads as cores are granted by control groups and Slurm."""

import os

import pytest
import torch
from trees import tree

from cft.config.compose import compose_config
from cft.model.embedder import Embedder
from cft.system import cores

V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """16 cores, whatever this machine has, and nothing set."""
    monkeypatch.setattr(cores, "_visible", lambda: 16)
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


TREES = {
    "nothing to read": ({}, 16),
    "no limit": ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "max 100000"}, 16),
    "two cores": ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "200000 100000"}, 2),
    "a part of a core is one more": ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "250000 100000"}, 3),
    "less than one": ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "30000 100000"}, 1),
    "more than there are": ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "6400000 100000"}, 16),
    "a limit further up": (
        {"proc/self/cgroup": "0::/job/step", f"{V2}/job/cpu.max": "400000 100000", f"{V2}/job/step/cpu.max": "max 1"},
        4,
    ),
    "in a container, whose own name is another's": (
        {"proc/self/cgroup": "0::/../../docker/x", f"{V2}/cpu.max": "150000 50000"},
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "3:memory:/\n2:cpu:/job\n0::/",
            f"{V1}/job/cpu.cfs_quota_us": 800000,
            f"{V1}/job/cpu.cfs_period_us": 100000,
            f"{V1}/cpu.cfs_quota_us": -1,
            f"{V1}/cpu.cfs_period_us": 100000,
        },
        8,
    ),
    "version 1, mounted with another controller": (
        {
            "proc/self/cgroup": "2:cpu,cpuacct:/job",
            f"{V1},cpuacct/job/cpu.cfs_quota_us": 500000,
            f"{V1},cpuacct/job/cpu.cfs_period_us": 100000,
        },
        5,
    ),
    "unreadable": ({"proc/self/cgroup": "0::/a", f"{V2}/a/cpu.max": "?"}, 16),
}


@pytest.mark.parametrize("kind", TREES)
def test_cores_are_those_that_the_control_groups_grant(tmp_path, kind):
    files, expected = TREES[kind]
    assert cores.granted_cores(tree(tmp_path, files)) == expected


@pytest.mark.parametrize("given, expected", [("4", 4), ("0", 1), ("64", 16), ("a few", 16)])
def test_cores_are_those_that_slurm_grants(tmp_path, monkeypatch, given, expected):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert cores.granted_cores(tmp_path) == expected


def test_torch_has_no_more_threads_than_cores_unless_somebody_chose(monkeypatch):
    monkeypatch.setattr(cores, "granted_cores", lambda: 3)
    torch.set_num_threads(2)
    cores.use_granted_cores()
    assert torch.get_num_threads() == 2, "fewer stay as they are"
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    cores.use_granted_cores()
    assert torch.get_num_threads() == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores.use_granted_cores()
    assert torch.get_num_threads() == 3


def test_whoever_loads_a_model_has_no_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(cores, "granted_cores", lambda: 1)
    torch.set_num_threads(2)
    Embedder.base(compose_config(["model=tiny"]).model)
    assert torch.get_num_threads() == 1


def test_the_machines_own_groups_can_be_read():
    assert 1 <= cores.granted_cores() <= max(16, os.cpu_count() or 1)
