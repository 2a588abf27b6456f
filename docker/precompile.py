"""Compile what the sidecar imports, for an image whose root nobody can write to.

`PYTHONPYCACHEPREFIX` says where to. The base image brings no bytecode of the standard library either, and without
any, each start would compile 400 modules anew. Checked hashes: two builds give the same bytes (no time is in them),
and a module that a later layer patches is compiled from its source, not run from here.
"""

from __future__ import annotations

import importlib
import pkgutil
import py_compile
import sys
from importlib.machinery import SourceFileLoader

import wings_proxy


def main() -> None:
    """Import every module of ours with all it needs, then compile what that has loaded."""
    if sys.pycache_prefix is None:
        sys.exit("set PYTHONPYCACHEPREFIX to the directory the image keeps bytecode in")
    # What is imported late, or only by some.
    names = ["uvloop", "encodings.idna", "runpy"]
    names += [module.name for module in pkgutil.walk_packages(wings_proxy.__path__, "wings_proxy.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    loaded = {
        module.__spec__.origin
        for module in list(sys.modules.values())
        if module.__spec__ is not None and isinstance(module.__spec__.loader, SourceFileLoader)
    }
    for path in sorted(filter(None, loaded)):
        py_compile.compile(path, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)


if __name__ == "__main__":
    main()
