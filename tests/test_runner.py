"The runner keeps whole results only, runs nothing twice, and goes on where it was killed. Everything happens in a small checkout of its own."
import json
import os
import re
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from papersuite.core.results import HOLDS, read_record
from papersuite.build.runner import reproduce

PARAMETERS = 'scale = "smoke"\nseed = 0'
OPEN = """
import matplotlib.pyplot as plt
from papersuite.core.experiment import Experiment
from papersuite.core.results import Rule
import papersuite.core.figures, papersuite.build.runner
print(seed, file=open("runs.txt", "a"))
lab = Experiment("mini", scale, [seed])"""
DRAW = """
for i in range(6):
    fig, ax = plt.subplots(); ax.plot([seed, i]); plt.close(fig)
    lab.figure(fig, f"line{i}", "A line.", {"seed": seed})"""
CLOSE = """
lab.claim("A", "the deviation is small", "deviation", [0.0], Rule("within", 1))
lab.finish()"""


def write_notebook(checkout, *sources, paper="mini", tag="parameters"):
    "An experiments notebook whose first cell holds the parameters."
    cells = [new_code_cell(s.strip()) for s in sources]
    cells[0].metadata["tags"] = [tag]
    path = checkout/"nbs"/paper/"90_experiments.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    "A checkout with one paper that has run once, with seed 0."
    checkout = tmp_path_factory.mktemp("template")
    (checkout/"settings.ini").write_text("[DEFAULT]\n")
    write_notebook(checkout, PARAMETERS, OPEN, DRAW, CLOSE)
    before = Path.cwd()
    os.chdir(checkout)
    try: first, = reproduce(jobs=1)
    finally: os.chdir(before)
    assert first.error == "" and not first.reused
    return checkout


@pytest.fixture
def checkout(template, tmp_path, monkeypatch):
    "A copy of the template for one test, which works in it."
    folder = shutil.copytree(template, tmp_path/"checkout")
    monkeypatch.chdir(folder)
    return folder


def runs(checkout): return (checkout/"nbs/mini/runs.txt").read_text().split()


def command(*words, **options):
    "Start `papersuite` as a user would, in a process group of its own that a test can kill."
    program = [str(Path(sys.executable).with_name("papersuite")), *words]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options)


def finish(process):
    "Exit code and output of a command that is allowed to end by itself."
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def check_whole(folder):
    "A visible result is whole: a valid record, pictures that open, and numbers that all come from the record's own run."
    record = read_record(folder/"record.json")
    assert [f["label"] for f in record["figures"]] == [f"line{i}" for i in range(6)]
    for figure in record["figures"]:
        with Image.open(folder/figure["file"]) as picture: picture.load()
        numbers = json.loads((folder/figure["file"]).with_suffix(".json").read_text())["numbers"]
        assert [numbers["seed"]] == record["seeds"]
    return record


# What a run leaves, and when it is not repeated

def test_a_run_leaves_record_log_notebook_and_figures(checkout):
    folder = checkout/"_runs/smoke/mini"
    record = check_whole(folder)
    assert record["claims"][0]["verdict"] == HOLDS
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "log.txt", "notebook.ipynb", "record.json", "run.json"]
    assert "Executing Cell" in (folder/"log.txt").read_text()
    injected = [c for c in nbformat.read(folder/"notebook.ipynb", as_version=4).cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1


def test_where_no_terminal_is_a_plain_line_says_which_cell_is_at_work(checkout, capfd):
    write_notebook(checkout, PARAMETERS, OPEN, "import time; time.sleep(3)", DRAW, CLOSE)
    reproduce(jobs=1, report_every=0.2)
    lines = capfd.readouterr().err.splitlines()
    assert any(re.fullmatch(r"mini \d\d:\d\d: cell 3 of 5 \(.*\)", line) for line in lines), lines
    assert not (checkout/"_runs/smoke/mini/progress.json").exists()


def test_what_has_not_changed_is_not_run_again(checkout):
    again, = reproduce(jobs=1)
    assert again.reused and again.record["paper"] == "mini"
    assert runs(checkout) == ["0"]


def change_the_code(checkout): write_notebook(checkout, PARAMETERS, OPEN, DRAW, "# changed" + CLOSE)
def cut_the_record(checkout): path = checkout/"_runs/smoke/mini/record.json"; path.write_bytes(path.read_bytes()[:100])
def lose_a_figure(checkout): (checkout/"_runs/smoke/mini/figures/line3.png").unlink()
def nothing(checkout): pass


@pytest.mark.parametrize("change, seed", [(change_the_code, 0), (nothing, 1), (cut_the_record, 0), (lose_a_figure, 0)])
def test_what_has_changed_or_is_damaged_is_run_again(checkout, change, seed):
    change(checkout)
    again, = reproduce(jobs=1, seed=seed)
    assert not again.reused and again.error == ""
    assert runs(checkout) == ["0", str(seed)]
    assert check_whole(checkout/"_runs/smoke/mini")["seeds"] == [seed]


# When a notebook is wrong

def test_one_bad_notebook_is_reported_and_the_others_still_run(checkout):
    write_notebook(checkout, PARAMETERS, "1", paper="untagged", tag="other")
    write_notebook(checkout, PARAMETERS, "1/0", paper="broken")
    write_notebook(checkout, PARAMETERS, OPEN, DRAW, "'changed'" + CLOSE)
    broken, mini, untagged = reproduce(jobs=1)
    assert "0 cells tagged `parameters`" in untagged.error
    assert "ZeroDivisionError" in broken.error and "division by zero" in broken.error
    assert mini.error == "" and runs(checkout) == ["0", "0"]
    failed = checkout/"_runs/smoke/broken.failed"
    assert "ZeroDivisionError" in (failed/"log.txt").read_text() + (failed/"notebook.ipynb").read_text()
    assert not (checkout/"_runs/smoke/broken").exists()


def test_a_failure_leaves_the_earlier_result_untouched(checkout):
    folder = checkout/"_runs/smoke/mini"
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write_notebook(checkout, PARAMETERS, OPEN, DRAW, "raise RuntimeError('the sweep diverged')" + CLOSE)
    failed, = reproduce(jobs=1)
    assert "RuntimeError: the sweep diverged" in failed.error and failed.record is None
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# When the process is killed

def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(); process.stdout.close()


def wait_for(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_leaves_the_old_result_whole_and_the_next_run_completes(checkout):
    stages = checkout/"_runs/smoke"
    def seen(name, text):
        try: return any(text in path.read_text() for path in stages.glob(f".mini.*/{name}"))
        except FileNotFoundError: return True  # moved into place while we looked
    moments = [("prepared.ipynb", ""), ("figures/line0.json", '"seed": 1'), ("figures/line4.json", '"seed": 1')]
    for name, text in moments:  # the kernel starts; the first figure is there; nearly done
        process = command("reproduce", "mini", "--seed", "1", "--force")
        wait_for(lambda: seen(name, text), name)
        time.sleep(random.uniform(0, 0.2))
        kill(process)
        assert check_whole(stages/"mini")["seeds"] in ([0], [1])  # the last moment may come after the end
        for left in stages.glob(".mini.*"): shutil.copytree(left, checkout/"left"/left.name, dirs_exist_ok=True)
    assert any((checkout/"left").iterdir())  # at least one run really was killed in the middle
    code, output = finish(command("reproduce", "mini", "--seed", "2"))
    assert code == 0, output
    assert check_whole(stages/"mini")["seeds"] == [2]
    assert [p.name for p in stages.iterdir()] == ["mini"]


SLOW_GRID = """
import os, time
def row(i):
    time.sleep(0.3)
    with open("rows.txt", "a") as f: f.write(f"{i} {os.getpid()}\\n")
    return i
assert lab.map(row, [{"i": i} for i in range(16)]) == list(range(16))"""


def grow(read):
    "Does what `read` returns still change within a second? (Joblib's orphans finish the rows they had been given.)"
    before = read(); time.sleep(1)
    return read() != before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_grid_goes_on_where_it_was(checkout, workers):
    write_notebook(checkout, PARAMETERS, OPEN, SLOW_GRID, CLOSE)
    log = checkout/"nbs/mini/rows.txt"
    rows = lambda: [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    process = command("reproduce", "mini", "--jobs", str(workers))
    wait_for(lambda: len(rows()) >= 5, "five rows")
    kill(process)
    wait_for(lambda: not grow(rows), "the orphaned kernel to end")
    for pid in {pid for _, pid in rows()}: end_process(int(pid))
    assert len(rows()) < 16, "the grid ended before it was killed"
    code, output = finish(command("reproduce", "mini", "--jobs", str(workers)))
    assert code == 0, output
    assert {i for i, _ in rows()} == {str(i) for i in range(16)}
    assert 16 <= len(rows()) <= 16 + workers  # only a row that was just being stored may have run twice


def end_process(pid):
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: pass


# What the shell is told

def test_a_lost_claim_ends_in_exit_code_1(checkout):
    committed = checkout/"data/results/mini/smoke.json"
    committed.parent.mkdir(parents=True)
    shutil.copy(checkout/"_runs/smoke/mini/record.json", committed)
    assert finish(command("reproduce"))[0] == 0
    write_notebook(checkout, PARAMETERS, OPEN, DRAW, CLOSE.replace("[0.0]", "[2.0]"))
    code, output = finish(command("reproduce"))
    assert code == 1
    assert "claim mini.A held in the committed record and does not hold now" in output


def test_a_failing_notebook_ends_in_exit_code_1(checkout):
    write_notebook(checkout, PARAMETERS, "raise RuntimeError('the sweep diverged')")
    code, output = finish(command("reproduce"))
    assert code == 1
    assert "mini failed: PapermillExecutionError: RuntimeError: the sweep diverged" in output


def test_an_unknown_paper_ends_in_exit_code_2(checkout):
    code, output = finish(command("reproduce", "no_such_paper"))
    assert code == 2
    assert "no paper no_such_paper; there are mini" in output and "Traceback" not in output
