"""The machine: files written whole, locks, disk, devices, processes, signals, terminal, hub client, errors."""
