"What every test of the project shares: no windows, two threads, and no test that a module merely imported."
import inspect
import os

os.environ["MPLBACKEND"] = "agg"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch or NumPy is loaded, or it has no effect

import matplotlib
import pytest

matplotlib.use("agg")


def pytest_pycollect_makeitem(collector, name, obj):
    "A function that came by import is not a test of this module: fastcore's `test_eq` and friends look like tests to pytest."
    if inspect.isfunction(obj) and obj.__module__ != collector.module.__name__: return []


def pytest_collection_modifyitems(items):
    "Tests marked `gpu` are skipped, with the reason, where there is no CUDA device. PyTorch is loaded only if there is such a test."
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked: return
    import torch
    if torch.cuda.is_available(): return
    for item in marked: item.add_marker(pytest.mark.skip(reason="needs a CUDA device; none is here"))


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    "Figures that a test leaves open would pile up over the session."
    yield
    import matplotlib.pyplot as plt
    plt.close("all")
