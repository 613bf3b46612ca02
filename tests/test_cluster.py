"The rows of an experiment may be computed on a Dask cluster; its record does not tell."
import json
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from papersuite.build.runner import reproduce

distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

CELLS = ['scale = "smoke"\nseed = 0', """
import os
import numpy as np
from papersuite.core.experiment import Experiment
from papersuite.core.results import Rule
from papersuite.core.scales import spawn_seeds
from papersuite.tensor_star import TensorStar
from threadpoolctl import threadpool_limits
lab = Experiment("mini", scale, spawn_seeds(seed, 3))""", """
def approximate(rank, seed):
    "Relative error of a tensor star of random numbers, and the process that found it."
    x = np.random.default_rng(seed).normal(size=(5, 6, 7))
    with threadpool_limits(1): # sums are rounded by the number of threads that share them
        found = np.asarray(TensorStar(rank, random_state=seed).fit_transform(x).to_tensor())
    return dict(rank=rank, seed=seed, error=float(np.linalg.norm(found - x) / np.linalg.norm(x)), process=os.getpid())

rows = lab.map(approximate, [dict(rank=r, seed=s) for r in (2, 3) for s in lab.seeds])
errors = {r: [row["error"] for row in rows if row["rank"] == r] for r in (2, 3)}""", """
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.plot(list(errors.values()))
lab.figure(fig, "errors", "Errors by rank.", errors)
lab.claim("A", "a larger rank has a smaller error", "error at rank 3 less that at rank 2",
          np.subtract(errors[3], errors[2]).tolist(), Rule("below", 0))
print(len({row["process"] for row in rows}), os.getpid() in {row["process"] for row in rows}, file=open("where.txt", "w"))
lab.finish()"""]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A checkout with one paper, whose rows are fits of a tensor star."
    cells = [new_code_cell(source.strip()) for source in CELLS]
    cells[0].metadata["tags"] = ["parameters"]
    (tmp_path/"nbs/mini").mkdir(parents=True)
    (tmp_path/"settings.ini").write_text("[DEFAULT]\n")
    nbformat.write(new_notebook(cells=cells), tmp_path/"nbs/mini/90_experiments.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(checkout, name):
    "What was measured, the numbers of the figure, and where the rows were computed."
    result, = reproduce(jobs=1, out=checkout/name)
    assert result.error == "", (result.job.folder.parent/"mini.failed/log.txt").read_text()[-2000:]
    measured = {key: result.record[key] for key in ("paper", "scale", "seeds", "claims", "figures")}
    return measured, json.loads((result.job.folder/"figures/errors.json").read_text()), (checkout/"nbs/mini/where.txt").read_text()


def test_a_cluster_of_two_workers_gives_the_record_of_one_process(checkout, monkeypatch):
    measured, numbers, where = run(checkout, "one")
    assert where.split() == ["1", "True"]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=checkout) as cluster:
        monkeypatch.setenv("PAPERSUITE_CLUSTER", cluster.scheduler_address)
        there = run(checkout, "two")
    assert there == (measured, numbers, "2 False\n")
