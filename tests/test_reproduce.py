"Every paper's experiments are run again at smoke scale, and every claim that held in the committed record still holds."
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from papersuite.build.runner import committed_records, experiments, problems, reproduce

ROOT = Path(__file__).parents[1]
PAPERS = list(experiments(ROOT))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "Paper -> result of a fresh run by the runner, with two workers, as continuous integration and `make reproduce` do it."
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {r.job.paper: r for r in reproduce(scale="smoke", out=tmp_path_factory.mktemp("runs"))}


def test_there_are_papers_to_reproduce(): assert PAPERS


@pytest.mark.parametrize("paper", PAPERS)
def test_the_experiments_run_and_no_claim_is_lost(results, paper):
    assert problems([results[paper]], ROOT) == []


@pytest.mark.parametrize("paper", PAPERS)
def test_the_record_to_compare_with_is_committed(results, paper):
    "Without it the test above could not fail. It has the same claims, so that a new one is committed too."
    committed = [r for r in committed_records(ROOT, "smoke") if r["paper"] == paper]
    assert committed, f"run `papersuite reproduce {paper} --scale smoke --keep`"
    assert [c["key"] for c in committed[0]["claims"]] == [c["key"] for c in results[paper].record["claims"]]


@pytest.mark.parametrize("paper", PAPERS)
def test_claims_are_measured_in_finite_numbers(results, paper):
    claims = results[paper].record["claims"]
    assert claims
    for claim in claims:
        assert all(v is not None and math.isfinite(v) for v in claim["values"]), claim["key"]


def numbers(x):
    "Every number in nested lists and dictionaries."
    if isinstance(x, dict): x = x.values()
    if isinstance(x, (int, float)): yield x
    elif not isinstance(x, str) and x is not None: yield from (n for y in x for n in numbers(y))


@pytest.mark.parametrize("paper", PAPERS)
def test_every_figure_has_a_picture_and_finite_numbers(results, paper):
    result = results[paper]
    assert result.record["figures"]
    for figure in result.record["figures"]:
        path = result.job.folder/figure["file"]
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 200
        plotted = list(numbers(json.loads(path.with_suffix(".json").read_text())["numbers"]))
        assert plotted and all(map(math.isfinite, plotted)), figure["label"]
