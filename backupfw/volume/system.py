"""Python bindings that come with the operating system, and with no package registry."""

from __future__ import annotations

import sys
import threading
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from types import ModuleType

from backupfw.errors import ConfigError

#: Where the packages of Debian and of Red Hat have their modules.
PLACES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib64/python3.{sys.version_info.minor}/site-packages",
)

_lock = threading.Lock()


def load(name: str, package: str) -> ModuleType:
    """Import a module of the operating system's Python, also in a virtual environment that does not see it.

    Only this one module: all others of the system stay invisible.  It must have been built for this minor
    version of Python.  Thread-safe.

    :param name: of a module without a dot.
    :param package: the package that brings it, for the error.
    :raises ConfigError: it is not installed, or not for this Python.
    """
    with _lock:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
        spec = PathFinder.find_spec(name, list(PLACES))
        if spec is None or spec.loader is None:
            raise ConfigError(
                f"the module {name} is missing: install the operating system's package {package}, built for"
                f" Python {sys.version_info.major}.{sys.version_info.minor}"
            )
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if isinstance(error, ImportError):
                raise ConfigError(f"the package {package} cannot be used: {error}") from error
            raise
        return module
