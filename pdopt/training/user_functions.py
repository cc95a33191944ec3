"""Users' own functions by name: `module:function` or `path/to/file.py:function`, as a recipe writes them.

Importing a file runs it. Nothing here is meant for files of unknown origin.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pdopt.errors import InvalidOption


def load_function(source: str, settings: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """A user's own function from `module:function` or `path/to/file.py:function`.

    The file is imported, so it runs: name only files that you trust. With settings the object named is a factory: it is
    called with them and what it returns is the score function.

    Raises:
        InvalidOption: no such module, file or function, something that cannot be called, or settings that the factory
            refuses.

    Example:
        >>> load_function("pdopt.training.answers:same_answer").__name__
        'same_answer'
    """
    where, colon, attribute = source.rpartition(":")
    if not colon or not where or not attribute:
        raise InvalidOption(f"{source!r} names no function; expected module:function or path/to/file.py:function")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_module(where)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_"))
            raise InvalidOption(f"{where} has no {attribute!r} (callable there: {known or 'nothing'})")
        found = getattr(found, part)
    if not callable(found):
        raise InvalidOption(f"{source} is a {type(found).__name__}; expected a function")
    if not settings:
        return found
    try:
        made = found(**settings)
    except TypeError as error:
        raise InvalidOption(f"{source} refuses the settings {dict(settings)}: {error}") from error
    if not callable(made):
        raise InvalidOption(f"{source} with settings gave a {type(made).__name__}; expected a score function")
    return made


def _from_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidOption(f"cannot import {name!r}: {error}") from error


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise InvalidOption(f"{path} is not a file; looked from {Path.cwd()}")
    name = f"_pdopt_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what dataclasses and pickling inside the file need
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise InvalidOption(f"cannot import {path}: {type(error).__name__}: {error}") from error
    return module
