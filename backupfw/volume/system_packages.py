"""Imports Python modules that only the operating system's packages have, also from a virtual environment."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from types import ModuleType

from backupfw.errors import ConfigError

#: Where Debian, and then others, install modules for the system's own Python.
_PLACES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
    f"/usr/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages",
)
_lock = threading.Lock()


def system_module(name: str, package: str, *, needs: tuple[str, ...] = ()) -> ModuleType:
    """Import a module of a system package, and nothing else from where it is.  Thread-safe.

    :param name: the module.
    :param package: the package that has it, for the error.
    :param needs: the modules beside it that it imports, in this order.
    :raises ConfigError: it is not installed for this version of Python; the message names the package.
    """
    with _lock:
        for needed in needs:
            _import(needed, package)
        return _import(name, package)


def _import(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        pass
    spec = importlib.machinery.PathFinder.find_spec(name, list(_PLACES))
    if spec is None or spec.loader is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise ConfigError(f"the operating system's package {package} is needed, for Python {version}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ImportError):
            raise ConfigError(
                f"the operating system's package {package} cannot be loaded: {error}"
            ) from error
        raise
    return module
