"settings.ini is the one place for the package's facts; whatever repeats one of them must agree."
import re
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try: import tomllib
except ModuleNotFoundError: import tomli as tomllib  # Python 3.10; pytest brings it there

ROOT = Path(__file__).parents[1]
PINNED = {"nbdev", "execnb"}  # tools whose releases break each other


@pytest.fixture(scope="module")
def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture(scope="module")
def pyproject(): return tomllib.loads((ROOT/"pyproject.toml").read_text())


@pytest.fixture(scope="module")
def requirements(settings):
    "Extra ('' for the package itself) -> its requirements."
    return {key.removesuffix("requirements").rstrip("_"): [Requirement(r) for r in settings[key].split()]
            for key in settings if key.endswith("requirements")}


def test_pyproject_agrees_with_settings(settings, pyproject):
    project, nbdev = pyproject["project"], pyproject["tool"]["nbdev"]
    assert project["name"] == settings["lib_name"]
    assert project["requires-python"] == f">={settings['min_python']}"
    assert project["urls"] == {"Repository": settings["git_url"], "Documentation": settings["doc_host"] + settings["doc_baseurl"]}
    for key in ("lib_path", "nbs_path", "doc_path", "tst_flags"): assert nbdev[key] == settings[key], key


def test_everything_that_setup_provides_is_declared_dynamic(pyproject):
    assert {"version", "dependencies", "optional-dependencies", "scripts", "entry-points"} <= set(pyproject["project"]["dynamic"])
    assert not set(pyproject["project"]["dynamic"]) & set(pyproject["project"])


def test_there_is_one_version(settings):
    import papersuite
    cited = re.search(r"^version: (\S+)$", (ROOT/"CITATION.cff").read_text(), flags=re.M)[1]
    assert papersuite.__version__ == settings["version"] == cited == metadata.version("papersuite")


def test_citation_agrees_with_settings(settings):
    cited = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT/"CITATION.cff").read_text(), flags=re.M))
    assert cited["repository-code"] == settings["git_url"]
    assert cited["url"] == settings["doc_host"] + settings["doc_baseurl"]
    assert cited["license"] == settings["license"]
    assert settings["author"] in (ROOT/"CITATION.cff").read_text()


def test_every_console_script_leads_to_a_function(settings):
    installed = {e.name: e for e in metadata.distribution("papersuite").entry_points if e.group == "console_scripts"}
    declared = dict(s.split("=") for s in settings["console_scripts"].split())
    assert {name: e.value for name, e in installed.items()} == declared
    for script in installed.values(): assert callable(script.load())


def test_requirements_have_lower_bounds_and_only_tools_are_pinned(requirements):
    for extra, needed in requirements.items():
        for r in needed:
            allowed = {"=="} if r.name in PINNED and extra in ("dev", "docs") else {">="}
            assert {s.operator for s in r.specifier} <= allowed, f"{r} in {extra or 'requirements'}"
            assert r.url is None, f"{r} names an address; an index must be able to provide it"
    pins = {(r.name, str(r.specifier)) for needed in requirements.values() for r in needed if r.name in PINNED}
    assert len(pins) == len(PINNED), "dev and docs pin different versions"


def test_torch_comes_without_its_companions(requirements):
    "torchvision and torchaudio must match torch's build; a machine with another build could not install us."
    needed = {canonicalize_name(r.name) for rs in requirements.values() for r in rs} | set(constraints())
    assert "torch" in needed and not needed & {"torchvision", "torchaudio"}


def constraints():
    "Package -> its line in constraints.txt."
    lines = [line for line in (ROOT/"constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    found = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    assert len(found) == len(lines), "a package stands in constraints.txt twice"
    return found


def test_constraints_fix_every_requirement_of_an_ordinary_installation(requirements):
    fixed = constraints()
    for extra in ("", "dev", "docs"):
        for r in requirements[extra]:
            assert canonicalize_name(r.name) in fixed, f"{r.name} has no version in constraints.txt"
            pin, = fixed[canonicalize_name(r.name)].specifier
            assert pin.operator == "==" and pin.version in r.specifier, f"constraints.txt has {r.name} {pin}, settings.ini wants {r}"


def test_constraints_are_sorted_and_torch_is_free_of_a_build_suffix():
    names = list(constraints())
    assert names == sorted(names)
    assert "+" not in str(constraints()["torch"].specifier) and constraints()["torch"].marker is None


def test_both_site_builders_read_one_navigation():
    link = ROOT/"nbs/_quarto.yml"
    assert link.is_symlink() and link.readlink() == Path("../_quarto.yml")
    assert (ROOT/"_quarto.yml").is_file()
