"Importing the library is cheap, and every module of it can be imported."
import importlib
import pkgutil
import subprocess
import sys

import pytest

import papersuite

MODULES = [m.name for m in pkgutil.walk_packages(papersuite.__path__, "papersuite.")]


def fresh(code):
    "What `code` prints in a new Python process."
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_import_papersuite_takes_less_than_300_milliseconds():
    "The best of five, since a busy machine delays but never hastens."
    code = "import time; t = time.perf_counter(); import papersuite; print(time.perf_counter() - t)"
    assert min(float(fresh(code)[0]) for _ in range(5)) < 0.3


def test_import_papersuite_loads_nothing_heavy():
    loaded = fresh("import papersuite, sys; print(*sys.modules)")
    assert "papersuite" in loaded and not {"torch", "numpy", "matplotlib", "scipy"} & set(loaded)


def test_the_command_line_loads_no_torch():
    loaded = fresh("import papersuite.build.cli, sys; print(*sys.modules)")
    assert "papersuite.build.cli" in loaded and not {"torch", "numpy", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name): importlib.import_module(name)


def test_there_are_modules(): assert "papersuite.build.runner" in MODULES
