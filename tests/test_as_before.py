"""What a user computes stays, from one version to the next.

`as_before/` holds the answers of small computations with fixed seeds, and the models that they saved, as version 0.1 gave them, before
the shared floors were built below it. The same code runs today. A change of an algorithm on purpose makes them anew, with the reason
in the commit: `python tests/test_as_before.py`. With PAPERSUITE_SAME_MACHINE=1, on the processor that made them, every bit is compared.
"""
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parent/"as_before"


def ring(inference, **options):
    "A Bayesian tensor ring of 30 entries, and how it answers for the other six."
    from papersuite.sbtr import BayesianTensorRing
    index = np.argwhere(np.ones((4, 3, 3)))[np.random.default_rng(0).permutation(36)]
    values = np.sin(index.sum(1))
    if options.get("likelihood") == "bernoulli": values = (values > 0).astype(float)
    model = BayesianTensorRing(rank=2, inference=inference, random_state=0, **options)
    return model.fit(index[:30], values[:30], shape=(4, 3, 3)), lambda model: model.predict(index[30:])


def causal(**options):
    "A neural Granger model of three series, and its graph."
    from papersuite.jrngc import JRNGC
    x = np.random.default_rng(0).normal(size=(60, 3))
    x[1:, 1] += 0.8 * x[:-1, 0]
    model = JRNGC(lag=2, hidden=4, layers=1, n_iter=20, random_state=0, device="cpu", **options)
    return model.fit(x), lambda model: model.predict(x[:8])


def star():
    "A tensor star after five sweeps, and its tensor."
    from papersuite.tensor_star import TensorStar
    x = np.random.default_rng(0).normal(size=(4, 5, 6))
    return TensorStar(2, random_state=0, n_iter_max=5).fit_transform(x), lambda model: model.to_tensor()


def completed(method):
    "A tensor of which four fifths are observed, completed."
    from papersuite.tensor_star import TensorStarCompletion
    rng = np.random.default_rng(0)
    x, seen = rng.normal(size=(4, 5, 6)), rng.random((4, 5, 6)) < 0.8
    return TensorStarCompletion(2, method, random_state=0, n_iter_max=5).fit_transform(x, mask=seen)


def adapted(**options):
    "Gradients of an adapter's weights."
    import peft
    from papersuite.tlora import TransformedLoraConfig
    torch.manual_seed(0)
    config = TransformedLoraConfig(target_modules=["0"], init_weights=False, **options)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 12)), config)
    (model(torch.linspace(-1, 1, 16).view(2, 8)) - 1).square().mean().backward()
    return np.concatenate([p.grad.flatten().numpy() for p in model.parameters() if p.requires_grad])


def attacked(attack, **options):
    "Adversarial images for a small network."
    from papersuite.attacks.auto_pgd import apgd
    from papersuite.attacks.gradient import pgd
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 1, 4, 4)
    return {"pgd": pgd, "apgd": apgd}[attack](net, x, net(x).argmax(1), 0.1, steps=8, **options).images.detach()


def purified(**options):
    "Images after three guided steps of a random diffusion model."
    from papersuite.agdm.purify import tiny_pipeline
    torch.manual_seed(0)
    x, generator = torch.rand(2, 1, 8, 8), torch.Generator().manual_seed(1)
    return tiny_pipeline()(x, start=20, steps=3, generator=generator, **options).images.detach()


gibbs = partial(ring, "gibbs", n_burn_in=8, n_samples=3, thin=2)
MODELS = {
    "ring_gibbs": gibbs, "ring_gibbs_binary": partial(gibbs, likelihood="bernoulli"),
    "ring_gibbs_block": partial(gibbs, update="block", adaptation="none", n_chains=2),
    "ring_em": partial(ring, "em", n_iter=5), "ring_online": partial(ring, "online_em", n_epochs=3),
    "ring_statistics": partial(ring, "online_em", n_epochs=3, m_step="statistics"),
    "causal_frobenius": causal, "causal_l1": partial(causal, penalty="l1"), "star": star}
ANSWERS = {
    "completed_pam": partial(completed, "pam"), "completed_masked": partial(completed, "masked"),
    "adapted_lora": adapted, "adapted_ring": partial(adapted, residual="ring", r=2, transform_rank=2),
    "adapted_outputs": partial(adapted, side="out"), "attacked_pgd": partial(attacked, "pgd"),
    "attacked_l2": partial(attacked, "pgd", norm="l2"), "attacked_apgd": partial(attacked, "apgd"),
    "purified": purified, "purified_plain": partial(purified, scale=0.0)}


def load(name, path):
    "A saved model."
    from papersuite.jrngc import JRNGC
    from papersuite.sbtr import load_ring_estimator
    from papersuite.tensor_star import TensorStarTensor
    return {"ring": load_ring_estimator, "causal": JRNGC.load, "star": TensorStarTensor.load}[name.partition("_")[0]](path)


def same(found, name):
    "Equal but for the rounding of another processor."
    before = np.array(json.loads((FOLDER/"answers.json").read_text())[name])
    np.testing.assert_allclose(np.asarray(found, float), before, rtol=1e-4, atol=1e-6 * np.abs(before).max())
    if os.environ.get("PAPERSUITE_SAME_MACHINE"): assert np.array_equal(np.asarray(found, float), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_version_0_1_answers_as_it_did(name):
    _, answer = MODELS[name]()
    same(answer(load(name, FOLDER/f"{name}.safetensors")), name)


@pytest.mark.parametrize("name", MODELS)
def test_a_fit_is_what_it_was(name):
    model, answer = MODELS[name]()
    same(answer(model), name)


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_what_it_was(name): same(ANSWERS[name](), name)


if __name__ == "__main__":
    answers = {name: np.asarray(make(), float).tolist() for name, make in ANSWERS.items()}
    for name, make in MODELS.items():
        model, answer = make()
        model.save(FOLDER/f"{name}.safetensors")
        answers[name] = np.asarray(answer(model), float).tolist()
    (FOLDER/"answers.json").write_text(json.dumps(answers) + "\n")
