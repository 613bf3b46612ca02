"What a reader sees below a cell is what the cell says today."
import json, re
from html import unescape
from pathlib import Path
import pytest
from papersuite.build.runner import directives, experiments
from papersuite.core.experiment import verdicts_text
from papersuite.core.results import read_record

ROOT = Path(__file__).parents[1]
EXECUTED = ROOT/"build"/"nbs"  # made by `make test`: a copy of the notebooks that has been run
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", re.IGNORECASE)
ADDRESS = re.compile(r"0x[0-9a-f]+")
TAG = re.compile(r"<style.*?</style>|<[^>]*>", re.DOTALL)

def code_cells(path):
    "Cells of code by id, without tests: those are pytest's, and the executed copy lacks them."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {c["id"]: c for c in cells if c["cell_type"] == "code" and "test" not in directives("".join(c["source"]))}

def text(cell):
    "Everything that a cell printed or returned as text; pictures and warnings are left out."
    parts = []
    for out in cell["outputs"]:
        data = out.get("data", {})
        if out["output_type"] == "stream" and out["name"] == "stdout": parts += out["text"]
        elif "text/html" in data: parts += [unescape(TAG.sub(" ", "".join(data["text/html"]))), "\n"] # a table as text is cut to the width of a terminal
        elif "text/plain" in data and "image/png" not in data: parts += [*data["text/plain"], "\n"]
    return ADDRESS.sub("0x", "".join(parts)).strip()

def same(old, new, tolerance=0.05):
    "Equal words, and numbers that agree to five per cent or 0.02: what is trained or drawn follows the rounding of the processor."
    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split(): return False
    pairs = zip(*([float(n.replace(",", "")) for n in NUMBER.findall(t)] for t in (old, new)))
    return all(a == pytest.approx(b, rel=tolerance, abs=0.02) for a, b in pairs)

def notebooks():
    left_out = set(experiments(ROOT).values())
    return [p for p in sorted((ROOT/"nbs").rglob("*.ipynb")) if p not in left_out and ".ipynb_checkpoints" not in p.parts]

@pytest.mark.parametrize("path", notebooks(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_text_below_a_cell_is_what_it_says_today(path):
    executed = EXECUTED/path.relative_to(ROOT/"nbs")
    if not executed.exists(): pytest.skip("the notebooks have not been run; `make test` runs them first")
    shown, fresh = code_cells(path), code_cells(executed)
    if [c["source"] for c in shown.values()] != [c["source"] for c in fresh.values()]: pytest.skip("the notebook was edited after `make test` ran it")
    compared = {k for k, c in shown.items() if not any(line.startswith("#| varies") for line in c["source"])}
    stale = [f"cell {k} shows\n{text(shown[k])}\nand says\n{text(fresh[k])}" for k in compared if not same(text(shown[k]), text(fresh[k]))]
    assert not stale, "run the notebook again (`make notebooks`), or mark the cell `#| varies` if time, machine or rounding speak in it:\n\n" + "\n\n".join(stale)

def test_a_stale_number_and_a_stale_word_are_seen():
    assert same("3 rows, error 0.1234", "3 rows,  error 0.1235") and same("at 0x7f", "at 0x7f")
    assert not same("3 rows", "4 rows") and not same("3 rows", "3 columns") and not same("error 0.52", "error 0.55")

def announced(path):
    "What the cell that announces the verdicts shows; None where there is no such cell."
    cells = [c for c in code_cells(path).values() if "lab.announce()" in "".join(c["source"])]
    return "".join("".join(out["data"]["text/markdown"]) for out in cells[0]["outputs"]) if cells else None

@pytest.mark.parametrize("name, path", experiments(ROOT).items(), ids=experiments(ROOT))
def test_the_first_lines_of_the_experiments_say_what_the_record_says(name, path):
    record = read_record(ROOT/"data"/"results"/name/"laptop.json")
    assert announced(path) == verdicts_text(record["claims"])
