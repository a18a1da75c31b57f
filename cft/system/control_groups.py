"""Linux control groups around this process, in which containers and batch jobs are held to their share of a machine."""

from collections.abc import Iterator
from pathlib import Path


def folders(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, int]]:
    """The folder of each control group around this process, the group itself and all that it lies in.

    Args:
        controller: `memory` or `cpu`. root: where `proc` and `sys` are.

    Yields:
        The folder, and the version of control groups, 1 or 2, which says how the files in it are called.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, place = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and not controllers:
            # The folder `unified` is where a machine has both versions.
            version, mounts = 2, [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            version, mounts = 1, [root / "sys/fs/cgroup" / name for name in dict.fromkeys([controller, controllers])]
        else:
            continue
        for mount in mounts:
            # In a container the group's own name is that of the host, and its folder is the mount itself.
            for folder in dict.fromkeys([mount / place.lstrip("/"), mount]):
                while folder.is_relative_to(mount):
                    if folder.is_dir():
                        yield folder, version
                    folder = folder.parent
