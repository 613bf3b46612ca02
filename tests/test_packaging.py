"The wheel: what a user gets who installs papersuite without the notebooks."
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from configparser import ConfigParser
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*words, cwd):
    "Exit code and output of a command that runs in the folder `cwd`."
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def pip(python, *words, cwd):
    code, output = run(python, "-m", "pip", *words, cwd=cwd)
    if code and re.search(r"Failed to establish a new connection|Temporary failure in name resolution", output):
        pytest.skip("pip has no network here to install from")
    assert code == 0, output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy of the sources so that no build folder is left in the checkout."
    copy, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT/"papersuite", copy/"papersuite", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT/name, copy)
    pip(sys.executable, "wheel", ".", "--no-deps", "--wheel-dir", target, cwd=copy)
    return next(target.glob("papersuite-*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    "Python of a new environment that has the wheel and nothing else of ours, at the versions of constraints.txt."
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder/"bin/python"
    pip(python, "install", "--quiet", "-c", ROOT/"constraints.txt", wheel, cwd=folder)
    yield python
    shutil.rmtree(folder)  # more than a gigabyte, which pytest would keep for three sessions


def test_the_wheel_holds_every_file_of_the_library(wheel):
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("papersuite/")}
    there = {p.relative_to(ROOT).as_posix() for p in (ROOT/"papersuite").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert inside == there - {"papersuite/_modidx.py"}


def test_the_wheel_states_what_settings_state(wheel):
    archive = zipfile.ZipFile(wheel)
    stated = Parser().parsestr(archive.read(next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))).decode())
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    settings = config["DEFAULT"]
    assert (stated["Name"], stated["Version"], stated["Requires-Python"]) == (settings["lib_name"], settings["version"], f">={settings['min_python']}")
    assert stated["Summary"] == settings["description"]
    wanted = {f"{Requirement(r)}" for r in settings["requirements"].split()}
    assert {str(r) for r in map(Requirement, stated.get_all("Requires-Dist")) if r.marker is None} == wanted
    assert set(stated.get_all("Provides-Extra")) == {key.removesuffix("_requirements") for key in settings if key.endswith("_requirements")}


@pytest.mark.parametrize("code", ["import papersuite", "from papersuite.tensor_star import TensorStar"])
def test_an_installed_library_can_be_imported_anywhere(python, tmp_path, code):
    answer, output = run(python, "-c", f"{code}; import papersuite; print(papersuite.__file__)", cwd=tmp_path)
    assert answer == 0 and "site-packages" in output, output


def test_the_installed_command_explains_itself(python, tmp_path):
    code, output = run(python.with_name("papersuite"), "--help", cwd=tmp_path)
    assert code == 0 and "reproduce" in output


def test_outside_a_checkout_the_command_says_so_in_one_sentence(python, tmp_path):
    code, output = run(python.with_name("papersuite"), "list", cwd=tmp_path)
    assert code == 2
    assert "is not inside a papersuite checkout" in output and "Traceback" not in output
