"""Abilities of the installed versions of the dependencies: tests of those that are missing are
skipped.
"""

from __future__ import annotations

import importlib.util

import huggingface_hub
import pyarrow as pa
import pytest

keeps_lists_of_files = pytest.mark.skipif(
    not hasattr(huggingface_hub, "get_cached_repo_tree"),
    reason="huggingface_hub before 1.23 keeps no list of a commit's files",
)
has_buckets = pytest.mark.skipif(
    not hasattr(huggingface_hub.errors, "BucketNotFoundError"),
    reason="this huggingface_hub knows no buckets",
)
# huggingface_hub before 1.0 raises instead, as its requests do.
tries_again = pytest.mark.skipif(
    not hasattr(huggingface_hub, "close_session"),
    reason="this huggingface_hub does not try a 429 again",
)


# pyarrow before 19 has no type for JSON, and reads it as the text that it is stored as.
JSON = pa.json_() if hasattr(pa, "json_") else pa.string()
# JAX's plugin for CUDA writes pages to standard error where there is no GPU.
HAS_CUDA_PLUGIN = importlib.util.find_spec("jax_cuda12_plugin") is not None
is_silent = pytest.mark.skipif(
    HAS_CUDA_PLUGIN, reason="JAX's plugin for CUDA writes to standard error"
)


def own_lines(text: str) -> str:
    """Returns what a process wrote, without what Grain says of a JAX that is older than 0.7, and
    than 0.11.
    """
    if HAS_CUDA_PLUGIN:
        return ""
    said = ("Failed to load jax profiler", "Grain multiprocess worker profiling requires jaxlib")
    return "".join(
        line for line in text.splitlines(keepends=True) if not any(words in line for words in said)
    )
