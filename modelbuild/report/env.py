"""Facts for a bug report: versions, processor, memory. No paths, no names of hosts or users."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from modelbuild import __version__

PACKAGES = (
    "torch", "safetensors", "numpy", "numba", "llvmlite", "xxhash", "tomli", "pydantic", "typer", "rich",
    "huggingface_hub", "transformers", "peft", "bitsandbytes", "sentencepiece",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """The facts, in a fixed order."""
    facts: dict[str, Any] = {
        "modelbuild": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "threads": os.cpu_count(),
    }
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0] if lines else platform.processor() or "unknown"
