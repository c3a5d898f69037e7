"""Where a report was made: versions, CPU, threads."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

_PACKAGES = ("tfopt", "tensorflow", "keras", "ai-edge-litert", "numpy")


def describe_environment() -> dict[str, Any]:
    """Versions, CPU model, usable threads and platform; imports none of the packages it names.

    Returns:
      `versions`: package to version, "not installed" where it is missing; `cpu`: the model's name;
      `threads`: logical CPUs that this process may use; `platform`: the operating system.

    >>> sorted(describe_environment())
    ['cpu', 'platform', 'threads', 'versions']
    """
    versions = {"python": platform.python_version()}
    versions.update({package: _version(package) for package in _PACKAGES})
    return {
        "versions": versions,
        "cpu": _cpu(),
        "threads": _threads(),
        "platform": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """The CPU's marketing name on Linux where the kernel tells it, else its architecture."""
    listing = pathlib.Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, model = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware") and model.strip():
                return model.strip()
    return platform.processor() or platform.machine()


def _threads() -> int:
    """A container or taskset may allow fewer CPUs than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
