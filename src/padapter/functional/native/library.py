"""The C library: compiled on first use with the machine's C compiler, kept in the cache folder, loaded once."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from padapter.cache import cache_folder

_SOURCES = ("attention.c", "attention.h", "dropout.h", "products.h", "room.h", "scores.h", "threads.h")
_OPTIONS = ("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-shared", "-fPIC")
# What a compiler calls "for this processor"; ARM's spell it differently.
_TUNING = ("-march=native", "-mcpu=native")
_PATIENCE = 120.0  # seconds


class UnavailableError(Exception):
    """There is no library on this machine; the message is one clause, for people."""


@functools.cache
def obstacle() -> str | None:
    """Why the library cannot be used on this machine, or None; compiles it if it is the first to ask."""
    try:
        load()
    except UnavailableError as problem:
        return str(problem)
    except (OSError, RuntimeError, AttributeError) as problem:  # no home folder, a folder of somebody else, no library
        return f"the library cannot be compiled or loaded ({type(problem).__name__}: {problem})"
    return None


@functools.cache
def load() -> ctypes.CDLL:
    """Compile the library, or take it from the cache, and load it.

    Raises:
        UnavailableError: if it cannot be compiled or loaded here.
    """
    compiler = _compiler()
    source = Path(__file__).parent
    text = b"\0".join((source / name).read_bytes() for name in _SOURCES)
    key = hashlib.sha256(b"\0".join([text, *(part.encode() for part in (*_OPTIONS, *compiler, _processor()))]))
    folder = cache_folder() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as problem:
        raise UnavailableError(f"the cache folder cannot be written ({problem})") from problem
    _check_owner(folder)
    file = folder / f"attention-{key.hexdigest()[:20]}.so"
    if not file.is_file():
        _compile(compiler, source / "attention.c", file)
    _check_owner(file)
    try:
        library = ctypes.CDLL(str(file))
    except OSError as problem:
        raise UnavailableError(f"the compiled library cannot be loaded ({problem})") from problem
    for name in ("padapter_forward", "padapter_backward"):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_int, (ctypes.c_void_p,)
    library.padapter_prepare.restype, library.padapter_prepare.argtypes = None, (ctypes.c_void_p, ctypes.c_long)
    library.padapter_panel.restype = library.padapter_problem_size.restype = ctypes.c_long
    return library


def _check_owner(path: Path) -> None:
    """Refuse what another user could have written: it is code that will run here."""
    if not hasattr(os, "getuid"):
        return
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnavailableError(
            f"{path} belongs to another user, or others can write to it (set PADAPTER_CACHE, or chmod go-w)"
        )


def _compiler() -> list[str]:
    """``CC``, which may hold options too, or what is usual."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for name, *options in [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(name)
        if found:
            return [found, *options]
    raise UnavailableError(f"there is no C compiler ({' '.join(wanted) or 'cc, gcc or clang'})")


def _processor() -> str:
    """What decides which instructions the compiler may use: a cache folder can be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    return platform.machine() + "".join(told.get(name, "") for name in ("model name", "flags", "Features", "CPU part"))


def _compile(compiler: list[str], source: Path, file: Path) -> None:
    """Compile to a file of another name, and rename it: another process may be doing the same."""
    try:
        descriptor, name = tempfile.mkstemp(suffix=".so", prefix="attention-", dir=file.parent)
    except OSError as problem:
        raise UnavailableError(f"the cache folder cannot be written ({problem})") from problem
    os.close(descriptor)
    fresh = Path(name)
    try:
        said = ""
        for tuning in _TUNING:
            command = [*compiler, *_OPTIONS, tuning, str(source), "-o", name, "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
            except (OSError, subprocess.TimeoutExpired) as problem:
                raise UnavailableError(f"the C compiler {compiler[0]} fails ({problem})") from problem
            if done.returncode == 0:
                fresh.chmod(0o755)
                fresh.replace(file)
                return
            said = said or (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        raise UnavailableError(f"the C compiler {compiler[0]} cannot compile it ({said})")
    finally:
        fresh.unlink(missing_ok=True)
