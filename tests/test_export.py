"The notebooks are the source: what is written from them is fresh, and they keep the form that readers rely on."
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from papersuite.build.runner import experiment_name, experiments
from papersuite.build.testgen import generated_tests

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
EXPERIMENTS = list(experiments(ROOT).values())
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT/"nbs").as_posix())
each_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=experiment_name)


def tool(name, *words, cwd):
    "Run a command of this environment; its output is the message if it fails."
    done = subprocess.run([str(Path(sys.executable).with_name(name)), *words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path):
    "The sources and what is written from them, in a folder that may be changed."
    for name in ("nbs", "papersuite"): shutil.copytree(ROOT/name, tmp_path/name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "_quarto.yml", "README.md"): shutil.copy(ROOT/name, tmp_path)
    return tmp_path


def texts(folder, pattern): return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob(pattern)}


def cells(path, kind): return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


# What is written from the notebooks

def test_the_library_is_what_the_notebooks_export(copy):
    "Exported into an empty package, so that a module whose notebook is gone shows up as well."
    for module in (copy/"papersuite").rglob("*.py"):
        if module != copy/"papersuite/__init__.py": module.unlink()  # holds the version, which nbdev reads
    tool("nbdev-export", cwd=copy)
    fresh, committed = texts(copy/"papersuite", "*.py"), texts(ROOT/"papersuite", "*.py")
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run `make export`"


def test_the_generated_tests_are_fresh():
    wanted = {path.name: text for path, text in generated_tests(ROOT).items()}
    there = {path.name: path.read_text() for path in (ROOT/"tests").glob("test_nb_*.py")}
    assert wanted, "no notebook defines a test"
    assert sorted(there) == sorted(wanted), "run `make export`"
    assert [name for name in wanted if wanted[name] != there[name]] == [], "run `make export`"


def test_the_readme_is_the_index_notebook():
    from papersuite.build.site import readme
    assert (ROOT/"README.md").read_text() == readme(ROOT), "run `make export`"


def test_the_notebooks_are_clean(copy):
    "nbdev-clean finds nothing to remove: no execution counts, no editor's metadata."
    before = texts(copy/"nbs", "*.ipynb")
    tool("nbdev-clean", cwd=copy)
    after = texts(copy/"nbs", "*.ipynb")
    assert [name for name in before if before[name] != after[name]] == [], "run `nbdev-clean`"


def test_ruff_finds_nothing(): tool("ruff", "check", "--no-cache", "--output-format=concise", "papersuite", "tests", "nbs", cwd=ROOT)


# The form of a notebook

@each_notebook
def test_a_notebook_is_valid_and_opens_with_title_and_subtitle(path):
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    title, subtitle = [line for line in nb.cells[0].source.splitlines() if line.strip()][:2]
    assert nb.cells[0].cell_type == "markdown" and title.startswith("# ") and subtitle.startswith("> ")


@each_notebook
def test_no_code_cell_is_longer_than_25_lines(path):
    for c in cells(path, "code"):
        lines = [line for line in c.source.splitlines() if line.strip() and not line.startswith("#|")]
        assert len(lines) <= 25, f"{len(lines)} lines in cell {c.id}, which begins {lines[0]!r}"


@each_notebook
def test_no_output_is_an_error_or_names_a_folder_of_somebody_s_machine(path):
    for c in cells(path, "code"):
        for output in c.outputs:
            assert output.output_type != "error", f"cell {c.id} ended in {output.get('ename')}"
            shown = "".join(v for k, v in output.get("data", {}).items() if k.startswith("text/")) + output.get("text", "")
            assert not re.search(r"/home/|/Users/|/root/|/tmp/|ipykernel_|site-packages|" + re.escape(f"{ROOT}/"), shown), f"cell {c.id} shows {shown[:200]!r}"


def test_there_are_experiments(): assert EXPERIMENTS


@each_experiment
def test_an_experiments_notebook_has_one_parameters_cell(path):
    tagged, = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", [])]
    values = {t.id: ast.literal_eval(s.value) for s in ast.parse(tagged.source).body for t in s.targets}
    assert values["scale"] == "smoke" and values["seed"] == 0


@each_experiment
def test_an_experiments_notebook_shows_its_figures_and_claims(path):
    outputs = [o.get("data", {}) for c in cells(path, "code") for o in c.outputs]
    assert any("image/png" in data for data in outputs), "no figure; run `papersuite reproduce --scale laptop --keep`"
    assert any("verdict" in "".join(data.get("text/html", "")) for data in outputs), "no table of claims"


# The floors of the house

SHARED = {
    "core": {"core"}, "build": {"core", "build"}, "kernels": {"core", "kernels"}, "tensor": {"core", "kernels", "tensor"}, "training": {"core", "training"},
    "vision": {"core", "vision"}, "language": {"core", "language"},
    "attacks": {"core", "kernels", "tensor", "training", "vision", "language", "attacks"}}


def imported(source, package):
    "The packages of ours that Python code inside `package` imports."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [["papersuite", package], ["papersuite"]][node.level - 1] if node.level else []
            module = above + (node.module.split(".") if node.module else [])
            names = [".".join([*module, a.name]) for a in node.names]
        else: continue
        yield from (n.split(".")[1] for n in names if n.startswith("papersuite.") and n != "papersuite.*")


def too_high(source, package): return set(imported(source, package)) - SHARED.get(package, set(SHARED) - {"build"} | {package}) - {"__version__"}


def test_the_check_of_floors_sees_every_way_to_import():
    assert too_high("from papersuite.tlora.adapter import TLora", "sbtr") == {"tlora"}
    assert too_high("from ..tlora.adapter import TLora", "sbtr") == {"tlora"}
    assert too_high("from .. import tlora", "sbtr") == {"tlora"}
    assert too_high("from papersuite.tlora.adapter import *", "sbtr") == {"tlora"}
    assert too_high("import papersuite.tensor.ring as ring", "core") == {"tensor"}
    assert too_high("def f():\n    from papersuite import tlora", "sbtr") == {"tlora"}
    assert too_high("from ..tensor.ring import unfold\nfrom .model import Model\nimport torch, papersuite", "sbtr") == set()


def test_no_module_and_no_notebook_imports_another_paper_or_a_higher_floor():
    found = [(p, p.parent.name, p.read_text()) for p in (ROOT/"papersuite").glob("*/*.py")]
    for p in NOTEBOOKS:
        if p.parent.name == "nbs": continue  # index.ipynb stands outside the house
        sources = (re.sub(r"^[ ]*[%!].*$", "", c.source, flags=re.M) for c in cells(p, "code"))
        found.append((p, p.parent.name, "\n".join(sources)))
    assert found
    assert {p.relative_to(ROOT).as_posix(): high for p, package, source in found if (high := too_high(source, package))} == {}
