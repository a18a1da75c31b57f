"""Free memory is what this process may take, and memory that ran out is free again."""

import gc
import resource
import weakref
from types import SimpleNamespace

import psutil
import pytest
import torch
from trees import tree

from cft.system import memory
from cft.system.memory import available_host_bytes, is_out_of_memory, kills_by_memory, unless_out_of_memory

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 64 GB without limits."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(rss=2 * GB, vms=3 * GB))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
STAT = "anon 5\ninactive_file 1000000000\nactive_file 7"
TREES = {
    "nothing to read": ({}, 64),
    "no limit": ({"proc/self/cgroup": "0::/a", f"{V2}/a/memory.max": "max", f"{V2}/a/memory.current": 8 * GB}, 64),
    "a limit": ({"proc/self/cgroup": "0::/a", f"{V2}/a/memory.max": 8 * GB, f"{V2}/a/memory.current": 3 * GB}, 5),
    "cached files are taken back": (
        {
            "proc/self/cgroup": "0::/a",
            f"{V2}/a/memory.max": 8 * GB,
            f"{V2}/a/memory.current": 3 * GB,
            f"{V2}/a/memory.stat": STAT,
        },
        6,
    ),
    "slowed down from here": (
        {
            "proc/self/cgroup": "0::/a",
            f"{V2}/a/memory.max": 8 * GB,
            f"{V2}/a/memory.high": 6 * GB,
            f"{V2}/a/memory.current": 3 * GB,
        },
        3,
    ),
    "a limit further up": (
        {
            "proc/self/cgroup": "0::/user.slice/job/step",
            f"{V2}/user.slice/memory.max": 20 * GB,
            f"{V2}/user.slice/memory.current": 18 * GB,
            f"{V2}/user.slice/job/step/memory.max": "max",
            f"{V2}/user.slice/job/step/memory.current": GB,
        },
        2,
    ),
    "in a container, whose own name is another's": (
        {"proc/self/cgroup": "0::/../../docker/x", f"{V2}/memory.max": 4 * GB, f"{V2}/memory.current": GB},
        3,
    ),
    "version 1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/slurm/job_7/step_0\n0::/",
            f"{V1}/slurm/job_7/memory.limit_in_bytes": 10 * GB,
            f"{V1}/slurm/job_7/memory.usage_in_bytes": 4 * GB,
            f"{V1}/slurm/job_7/memory.stat": "inactive_file 9\ntotal_inactive_file 1000000000",
            f"{V1}/slurm/job_7/step_0/memory.limit_in_bytes": 9223372036854771712,
            f"{V1}/slurm/job_7/step_0/memory.usage_in_bytes": 4 * GB,
        },
        7,
    ),
    "more is used than allowed": (
        {"proc/self/cgroup": "0::/a", f"{V2}/a/memory.max": GB, f"{V2}/a/memory.current": 3 * GB},
        0,
    ),
    "unreadable": ({"proc/self/cgroup": "what", f"{V2}/memory.max": "?", f"{V2}/memory.current": "?"}, 64),
}


@pytest.mark.parametrize("kind", TREES)
def test_free_memory_is_what_the_control_groups_leave(tmp_path, kind):
    files, expected = TREES[kind]
    assert available_host_bytes(tree(tmp_path, files)) == expected * GB


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"SLURM_MEM_PER_NODE": "8192"}, 8192 * 2**20 - 2 * GB),
        ({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "8"}, 8 * 2048 * 2**20 - 2 * GB),
        ({"SLURM_MEM_PER_NODE": "0"}, 64 * GB),
        ({"SLURM_MEM_PER_NODE": "a lot"}, 64 * GB),
    ],
)
def test_free_memory_is_what_slurm_granted(tmp_path, monkeypatch, given, expected):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert available_host_bytes(tmp_path) == expected


def test_free_memory_is_what_ulimit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (10 * GB, 10 * GB))
    assert available_host_bytes(tmp_path) == 7 * GB


def test_the_systems_kills_are_counted(tmp_path):
    assert kills_by_memory(tmp_path) is None
    tree(tmp_path, {"proc/vmstat": "nr_free_pages 5\noom_kill 12\npgfault 3"})
    assert kills_by_memory(tmp_path) == 12


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), ValueError("out of memory"), OSError()])
def test_other_errors_are_no_want_of_memory(error):
    assert not is_out_of_memory(error)

    def work():
        raise error

    with pytest.raises(type(error)):
        unless_out_of_memory(work)


def test_what_a_failed_work_held_is_free_before_it_is_tried_again():
    held = []

    def work():
        tensor = torch.ones(1000)
        held.append(weakref.ref(tensor))
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    gc.disable()
    try:
        assert unless_out_of_memory(work) is None
        assert held[0]() is None, "the traceback keeps it"
    finally:
        gc.enable()


def test_on_a_gpu_free_memory_is_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 9))
    assert memory.available_bytes(torch.device("cuda")) == 5
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1)
    assert memory.available_bytes(torch.device("cuda")) == 7, "what torch keeps unused is free"
