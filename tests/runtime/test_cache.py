"""What the command line sets, and what it leaves to the user; each run in its own process or undone after."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from pdopt.errors import PdoptError
from pdopt.runtime.cache import default_cache_folder, enable_compilation_cache, set_cpu_flags

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def options(monkeypatch):
    """Put JAX's options back after the test, and hide the user's environment."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    for name in [*OPTIONS, "jax_enable_compilation_cache"]:
        monkeypatch.delenv(name.upper(), raising=False)
    yield lambda: tuple(getattr(jax.config, name) for name in OPTIONS)
    for name, value in before.items():
        jax.config.update(name, value)


def test_sets_folder_and_thresholds(tmp_path, monkeypatch, options):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert enable_compilation_cache() == tmp_path / "pdopt" / "xla"
    assert options() == (str(tmp_path / "pdopt" / "xla"), 0, -1)
    assert enable_compilation_cache(tmp_path / "mine") == tmp_path / "mine"


def test_leaves_what_the_user_set(tmp_path, monkeypatch, options):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    seconds = options()[1]
    assert enable_compilation_cache() == tmp_path / "theirs"
    assert options() == (str(tmp_path / "theirs"), seconds, -1)


def test_a_cache_that_is_off_or_cannot_be_is_no_error(tmp_path, monkeypatch, options):
    before = options()
    (tmp_path / "file").write_text("")
    assert enable_compilation_cache(tmp_path / "file") is None
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert enable_compilation_cache(tmp_path / "read-only") is None
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert enable_compilation_cache(tmp_path) is None
    assert options() == before


def test_default_folder_follows_the_cache_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache_folder() == Path("/home/someone/.cache/pdopt/xla")


def test_flags_are_refused_once_a_backend_runs():
    jax.devices()
    with pytest.raises(PdoptError, match="before JAX starts a backend"):
        set_cpu_flags({})


CHILD = """
    import os, pdopt
    from pdopt.runtime.cache import enable_compilation_cache, set_cpu_flags
    print(set_cpu_flags(), os.environ["XLA_FLAGS"])
    import jax, jax.numpy as jnp
    enable_compilation_cache()
    print(float(jax.jit(lambda x: jnp.sum(x * 3))(jnp.ones(5))))
"""


@pytest.mark.multiprocess
def test_a_program_that_sets_both_compiles_into_the_folder(tmp_path):
    """The flags are taken after `import pdopt`, and the program compiled in far less than a second is kept."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    for flags in ("", "--xla_cpu_multi_thread_eigen=false"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(CHILD)],
            env=environment | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        first, second = done.stdout.splitlines()
        assert second == "15.0"
        expected = f"False {flags}" if flags else "True --xla_backend_extra_options=xla_cpu_small_while_loop"
        assert first.startswith(expected)
    assert any((tmp_path / "pdopt" / "xla").iterdir())
