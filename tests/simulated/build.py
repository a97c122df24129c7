"""Compiles the simulated device, once for each version of torch and of its source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_name("device.cpp")


class NoCompilerError(Exception):
    """No such device can be compiled here; it says why."""


PROBE = "#include <c10/core/Device.h>\n"
"""What any compiler that fits this torch takes."""


def built(folder: Path) -> Path:
    """The device as a shared library.

    Args:
        folder: Where it is kept between runs.

    Raises:
        NoCompilerError: There is no compiler that takes torch's headers.
        RuntimeError: There is one, and it does not take the device: its source is wrong.
    """
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = folder / f"device-{key}.so"
    if library.is_file():
        return library
    if torch.version.cuda is not None or torch.version.hip is not None:
        raise NoCompilerError("this torch has kernels for GPUs of its own; it takes a CPU build")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NoCompilerError("no C++ compiler was found (c++ or g++, or CXX in the environment)")
    flags = ["-std=c++20", *(f"-I{path}" for path in include_paths())]
    check = [compiler, *flags, "-fsyntax-only", "-x", "c++", "-"]
    probed = subprocess.run(check, input=PROBE, capture_output=True, text=True, check=False)
    if probed.returncode:
        raise NoCompilerError(f"{compiler} does not take torch's headers: {probed.stderr[-600:]}")
    part = library.with_suffix(f".{os.getpid()}.part")
    command = [compiler, *flags, "-O0", "-fPIC", "-shared", str(SOURCE), "-o", str(part)]
    for path in library_paths():
        command += [f"-L{path}", f"-Wl,-rpath,{path}"]
    made = subprocess.run(
        [*command, "-ltorch_cpu", "-lc10"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise RuntimeError(f"{compiler} does not compile {SOURCE.name}: {made.stderr[-600:]}")
    part.replace(library)
    return library
