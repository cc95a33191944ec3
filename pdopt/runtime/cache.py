"""Compilation cache and CPU flags for the command line. The library itself never calls anything in this file.

This is the one place of the package where `jax.config.update` is allowed: a program that owns its process may choose
where compiled code is kept; a library may not choose for the programs that import it. `set_cpu_flags` must run before
JAX starts a backend (importing JAX, or pdopt, starts none), so the file itself needs no JAX at the top.
"""

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from pdopt.errors import PdoptError

# XLA's CPU scheduler hands the independent small operations of a loop's body to several threads, which costs a solver's
# loop more than it gains; bodies below this many bytes are compiled for one thread. LLVM's unrolling of loops and its
# search for vectors among scalars find nothing in ours (a tenth of the time that small programs take to compile), and
# hide the vectors across the members of a batch. An unknown name in this option is ignored in silence by XLA, so a
# later XLA without it loses the gain and nothing else.
CPU_FLAG = (
    "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=20000000,xla_cpu_disable_loop_unrolling,"
    "xla_cpu_disable_slp_vectorizer"
)

# JAX option -> (environment variable by which a user sets it, our value). By default JAX does not keep programs that
# compiled in under a second, which is most of ours.
_OPTIONS = {
    "jax_persistent_cache_min_compile_time_secs": ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0),
    "jax_persistent_cache_min_entry_size_bytes": ("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", -1),
}


def default_cache_folder() -> Path:
    """`pdopt/xla` in the user's cache home (`XDG_CACHE_HOME`, or `~/.cache`)."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "pdopt" / "xla"


def enable_compilation_cache(folder: str | os.PathLike[str] | None = None) -> Path | None:
    """Keep compiled programs on disk (command line only): a second run of the same shapes starts without compiling.

    Whatever the user's environment sets (`JAX_COMPILATION_CACHE_DIR`, `JAX_ENABLE_COMPILATION_CACHE=0`, the two
    thresholds) is left as it is. On a pod use one shared folder.

    Args:
        folder: where to keep them; None: `default_cache_folder()`.

    Returns:
        The folder in use, or None if the user has switched the cache off or the folder cannot be made (a cache is a
        convenience: a read-only home is no reason to refuse to solve).
    """
    import jax

    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false", "off", "no"):
        return None
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR") if folder is None else os.fspath(folder)
    place = Path(chosen) if chosen else default_cache_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(place, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(place))
    for option, (variable, value) in _OPTIONS.items():
        if variable not in os.environ:
            jax.config.update(option, value)
    return place


def set_cpu_flags(environ: MutableMapping[str, str] | None = None) -> bool:
    """Compile small CPU loops for one thread, through `XLA_FLAGS`, unless the user has set that variable themselves.

    XLA reads the variable once, when the first backend starts: call this first in the program.

    Args:
        environ: the environment to change; None: `os.environ`.

    Returns:
        Whether the flag was added.

    Raises:
        PdoptError: JAX has already started a backend, so the flag would have no effect.

    Example:
        >>> made = {"XLA_FLAGS": "--mine=1"}
        >>> _set_flag(made), made
        (False, {'XLA_FLAGS': '--mine=1'})
    """
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        raise PdoptError("set_cpu_flags must be called before JAX starts a backend: XLA reads XLA_FLAGS only once")
    return _set_flag(os.environ if environ is None else environ)


def _set_flag(environ: MutableMapping[str, str]) -> bool:
    if environ.get("XLA_FLAGS"):
        return False
    environ["XLA_FLAGS"] = CPU_FLAG
    return True
