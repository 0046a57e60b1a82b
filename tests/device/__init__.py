"""A device for torch that is not the CPU, on machines that have none: see ``device.cpp``."""

from __future__ import annotations

import shutil
import subprocess
import types
from pathlib import Path

import torch

__all__ = ["COMPILER", "NAME", "build", "install"]

NAME = "elsewhere"
COMPILER = shutil.which("c++")


def build(folder: Path) -> Path:
    """Compile the device; takes half a minute."""
    from torch.utils.cpp_extension import include_paths, library_paths

    assert COMPILER is not None
    library = folder / "device.so"
    command = [COMPILER, "-std=c++20", "-O0", "-fPIC", "-shared", "-w", str(Path(__file__).with_name("device.cpp"))]
    command += ["-D_GLIBCXX_USE_CXX11_ABI=1", "-o", str(library)]
    command += [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
    command += ["-lc10", "-ltorch_cpu", "-ltorch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return library


def install(library: Path) -> torch.device:
    """Register the device with this process, for good."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(str(library))
    module = types.ModuleType(f"torch.{NAME}")
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
    }.items():
        setattr(module, name, value)
    torch._register_device_module(NAME, module)
    return torch.device(NAME, 0)
