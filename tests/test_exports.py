"""The public surface is exactly what is said to be public."""

import importlib
import pkgutil

import pytest

import vestige

MODULES = ["vestige"] + [
    m.name
    for m in pkgutil.walk_packages(vestige.__path__, "vestige.")
    if not m.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_every_name_in_all_exists_once(name):
    names = getattr(importlib.import_module(name), "__all__", [])
    module = importlib.import_module(name)
    assert [n for n in names if getattr(module, n, None) is None] == []
    assert len(set(names)) == len(names)


def test_the_package_shows_what_it_exports():
    submodules = {m.name for m in pkgutil.iter_modules(vestige.__path__)}
    visible = {n for n in vars(vestige) if not n.startswith("_")} - (
        submodules - set(vestige.__all__)
    )
    assert visible == set(vestige.__all__)
    assert callable(vestige.audit), "vestige.audit is the function, not the module"
