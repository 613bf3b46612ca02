"TLoRA behaves as peft expects of a tuner: what peft asks of its own methods on custom, transformers and diffusers models, asked of ours."
import copy
import json
import pickle
from pathlib import Path
from unittest import mock

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from papersuite.tlora.tuner import ATTENTION, PEFT_TYPE, TransformedLoraConfig, TransformedLoraLayer, TransformedLoraModel

SHAPES = [(R, residual, side) for R in (0, 1, 2) for residual in ("lora", "ring", "none") for side in ("in", "out") if R or residual != "none"]
every_shape = pytest.mark.parametrize("R, residual, side", SHAPES)
some_shapes = pytest.mark.parametrize("R, residual, side", [(1, "lora", "in"), (2, "ring", "in"), (2, "lora", "out"), (1, "none", "out"), (0, "ring", "in")])


class MLP(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.lin0, self.act, self.lin1, self.head = nn.Linear(12, 24, bias=bias), nn.ReLU(), nn.Linear(24, 16, bias=bias), nn.Linear(16, 4, bias=bias)

    def forward(self, x): return self.head(self.lin1(self.act(self.lin0(x.to(self.head.weight.dtype)))))


class Stack(nn.Module):
    "Blocks in a list, each with a linear layer, and a layer that is called twice."
    def __init__(self, n=3):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"lin": nn.Linear(12, 12), "norm": nn.LayerNorm(12)}) for _ in range(n)])
        self.again = nn.Linear(12, 12)

    def forward(self, x):
        for block in self.layers: x = block["norm"](block["lin"](x))
        return self.again(self.again(x))


class Tied(nn.Module):
    "Two linear layers that own one weight between them."
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x): return self.second(torch.tanh(self.first(x)))


class Alias(nn.Module):
    "One linear layer under two names."
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = self.first

    def forward(self, x): return self.second(torch.tanh(self.first(x)))


def make(kind=MLP, seed=0, **settings):
    torch.manual_seed(seed)
    return kind(**settings).eval()

def config(R=1, residual="lora", side="in", targets=("lin0", "lin1"), **settings):
    targets = targets if isinstance(targets, str) or targets is None else list(targets)
    return TransformedLoraConfig(**(dict(target_modules=targets, transform_rank=R, residual=residual, side=side, r=2) | settings))

def adapted(*shape, kind=MLP, seed=0, name="default", draw=1, wrap=None, **settings):
    "A model with a random adapter (or, with init_weights=True, a fresh one)."
    net = make(kind, seed)
    torch.manual_seed(draw)
    return get_peft_model(net, config(*shape, **({"init_weights": False} | settings)), adapter_name=name, **(wrap or {}))

def batch(n=5, width=12, seed=3):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))

def near(a, b, tolerance=1e-5): return (a - b).norm() <= tolerance * b.norm()

def step(model, x, rate=0.1):
    "One step of gradient descent from a random adapter."
    trained = [p for p in model.parameters() if p.requires_grad]
    solver = torch.optim.SGD(trained, rate)
    out = model(x)
    (out if torch.is_tensor(out) else out[0]).float().square().mean().backward()
    solver.step(); solver.zero_grad()

def layers_of(model): return [m for m in model.modules() if isinstance(m, TransformedLoraLayer)]

def biases(model): return {n: p for n, p in model.named_parameters() if n.endswith("bias")}


# ---- what a model looks like once it is wrapped

def test_import_registers_the_method_with_peft():
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    model = adapted()
    assert isinstance(model, PeftModel) and isinstance(model.base_model, PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE])
    assert isinstance(model.peft_config["default"], PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE]) and model.peft_type == PEFT_TYPE

def test_a_wrapped_model_has_the_attributes_that_peft_promises():
    model = adapted()
    for name in ("save_pretrained", "from_pretrained", "get_nb_trainable_parameters", "base_model", "peft_config", "active_adapter"): assert hasattr(model, name)
    assert model.active_adapter == "default" and model.active_adapters == ["default"]
    assert len(layers_of(model)) == 2 and isinstance(model.head, nn.Linear)

def test_the_repr_shows_the_adapter_by_name():
    text = repr(adapted(name="my_style"))
    assert "TransformedLoraLayer" in text and "my_style" in text and "base_layer" in text and "trlora_transform" in text

def test_a_wrapped_layer_still_shows_weight_bias_and_sizes():
    layer = adapted(2, "ring").lin0
    assert layer.weight is layer.base_layer.weight and layer.bias is layer.base_layer.bias
    assert (layer.in_features, layer.out_features) == (12, 24)

def test_an_adapter_name_of_the_users_choice_is_used_everywhere():
    model = adapted(name="style")
    assert model.active_adapters == ["style"] and set(model.peft_config) == {"style"}
    assert all(".style" in n for n, p in model.named_parameters() if p.requires_grad)

def test_an_adapter_name_inside_the_prefix_warns():
    with pytest.warns(UserWarning, match="should not be contained in the prefix"): adapted(name="trlora")

def test_the_name_of_a_second_adapter_must_be_new():
    model = adapted()
    with pytest.raises(ValueError, match="already exists"): model.add_adapter("default", config())

def test_an_adapter_of_another_method_is_refused_beside_ours():
    model = adapted()
    with pytest.raises(ValueError, match="different peft types"): model.add_adapter("lora", peft.LoraConfig(target_modules=["lin0"]))
    assert set(model.peft_config) == {"default"}

def test_wrapping_a_wrapped_model_again_warns():
    model = adapted()
    with pytest.warns(UserWarning, match="second time|already"): get_peft_model(model.base_model.model, config())

def test_a_module_of_the_base_model_that_is_named_like_the_prefix_stays_frozen_and_unsaved():
    torch.manual_seed(0)
    net = nn.ModuleDict({"trlora_projection": nn.Linear(4, 4), "lin0": nn.Linear(4, 4)})
    model = get_peft_model(net, config(targets=["lin0"]))
    assert not any(p.requires_grad for p in net["trlora_projection"].parameters())
    assert not any("trlora_projection" in k for k in get_peft_model_state_dict(model))


# ---- which layers are adapted

@pytest.mark.parametrize("targets, expected", [(("lin0",), {"lin0"}), (("lin0", "lin1"), {"lin0", "lin1"}), (r".*lin\d", {"lin0", "lin1"}), ("all-linear", {"lin0", "lin1", "head"})])
def test_targets_are_given_by_list_by_expression_or_as_all_linear(targets, expected):
    model = adapted(targets=targets)
    assert {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, TransformedLoraLayer)} == expected
    assert set(model.targeted_module_names) >= expected

def test_all_linear_leaves_the_output_layer_of_a_language_model_alone():
    model = get_peft_model(llama(), config(targets="all-linear"))
    names = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, TransformedLoraLayer)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

@pytest.mark.parametrize("excluded", [["lin1"], r".*lin1", {"lin1"}])
def test_excluded_layers_are_left_alone(excluded):
    model = adapted(exclude_modules=excluded)
    assert isinstance(model.lin0, TransformedLoraLayer) and type(model.lin1) is nn.Linear

def test_excluding_every_target_is_refused():
    with pytest.raises(ValueError, match="exclude"): adapted(targets=["lin0"], exclude_modules=["lin0"])

@pytest.mark.parametrize("which, expected", [([0, 2], {0, 2}), (1, {1})])
@pytest.mark.parametrize("pattern", [None, "layers", ["blocks", "layers"]])
def test_layers_to_transform_picks_layers_by_number(which, expected, pattern):
    model = adapted(kind=lambda: nn.ModuleDict({"body": Stack()}), targets=["lin"], layers_to_transform=which, layers_pattern=pattern)
    assert set(model.targeted_module_names) == {f"body.layers.{i}.lin" for i in expected}

def test_layers_to_transform_with_an_expression_is_refused():
    with pytest.raises(ValueError, match="layers_to_transform"): config(targets=r".*lin", layers_to_transform=[0])

def test_layers_pattern_without_layers_to_transform_is_refused():
    with pytest.raises(ValueError, match="layers_pattern"): config(targets=["lin"], layers_pattern="layers")

def test_unknown_targets_are_named():
    with pytest.raises(ValueError, match="feet"): adapted(targets=["feet"])

def test_no_targets_at_all_is_refused_with_the_name_of_the_argument():
    with pytest.raises(ValueError, match="target_modules"): adapted(targets=None)

def test_layers_of_one_expression_and_of_a_list_are_the_same_adapter():
    one, two = adapted(targets=["lin0", "lin1"]), adapted(targets=r"lin[01]")
    assert get_peft_model_state_dict(one).keys() == get_peft_model_state_dict(two).keys() and torch.equal(one(batch()), two(batch()))


# ---- a new adapter changes nothing

@every_shape
def test_a_new_adapter_does_not_change_the_output(R, residual, side):
    plain = make()(batch())
    out = adapted(R, residual, side, init_weights=True)(batch())
    assert torch.equal(out, plain) if R <= 1 else torch.allclose(out, plain, atol=2e-6)

@every_shape
def test_a_random_adapter_changes_the_output_and_keeps_it_finite(R, residual, side):
    out = adapted(R, residual, side)(batch())
    assert torch.isfinite(out).all() and not torch.allclose(out, make()(batch()), atol=1e-4)

@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 3, 12), (2, 1, 4, 12)])
def test_inputs_of_any_number_of_axes_are_taken(shape):
    x = torch.randn(shape)
    for settings in ((2, "ring", "in"), (1, "lora", "out")):
        out = adapted(*settings)(x)
        assert out.shape == (*shape[:-1], 4)
        if x.numel() > 12: assert torch.allclose(out.reshape(-1, 4), adapted(*settings)(x.reshape(-1, 12)), atol=1e-5)


# ---- training

@every_shape
def test_gradients_flow_only_to_the_adapter(R, residual, side):
    model = adapted(R, residual, side).train()
    model(batch()).square().mean().backward()
    for name, p in model.named_parameters():
        if "trlora_" in name: assert p.requires_grad and p.grad is not None and p.grad.abs().sum() > 0, name
        else: assert not p.requires_grad and p.grad is None, name

@some_shapes
def test_a_step_moves_the_adapter_and_nothing_else(R, residual, side):
    model = adapted(R, residual, side).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    step(model, batch())
    for name, value in model.state_dict().items(): assert torch.equal(value, before[name]) != ("trlora_" in name), name

@some_shapes
def test_training_lowers_the_loss(R, residual, side):
    model, x = adapted(R, residual, side, init_weights=True).train(), batch(16)
    target = torch.randn(16, 4, generator=torch.Generator().manual_seed(7))
    solver, losses = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2), []
    for _ in range(20):
        loss = (model(x) - target).square().mean(); solver.zero_grad(); loss.backward(); solver.step(); losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]

def test_gradients_reach_the_input_through_a_frozen_adapter():
    model = adapted(2, "ring").requires_grad_(False)
    x = batch().requires_grad_()
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0

@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    from torch.utils.checkpoint import checkpoint
    model, x = adapted(2, "ring").train(), batch()
    grads = lambda: [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model(x).square().mean().backward(); plain = grads(); model.zero_grad()
    checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant).square().mean().backward()
    assert plain and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, grads(), strict=True))

def test_a_layer_that_is_called_twice_is_adapted_both_times():
    model = adapted(2, "lora", kind=Stack, targets=["again"])
    x, layer = batch(), model.again
    y = make(Stack)
    for block in y.layers: x = block["norm"](block["lin"](x))
    W = layer.base_layer.weight + layer.get_delta_weight("default")
    f = lambda z: nn.functional.linear(z, W, layer.bias)
    assert torch.allclose(model(batch()), f(f(x)), atol=1e-5)


# ---- biases and modules to save

@pytest.mark.parametrize("bias, trained", [("none", set()), ("trlora_only", {"lin0", "lin1"}), ("all", {"lin0", "lin1", "head"})])
def test_the_bias_setting_says_which_biases_are_trained_saved_and_loaded(bias, trained, tmp_path):
    model = adapted(bias=bias)
    owner = lambda n: next(k for k in ("lin0", "lin1", "head") if f".{k}." in n)
    assert {owner(n) for n, p in biases(model).items() if p.requires_grad} == trained
    x, before = batch(), make()(batch())
    step(model, x)
    after = model(x).detach()
    model.save_pretrained(tmp_path)
    assert {owner(k) for k in load_file(tmp_path/"adapter_model.safetensors") if k.endswith("bias")} == trained
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    assert torch.allclose(loaded(x), after, atol=1e-6) and not torch.allclose(after, before, atol=1e-3)

@pytest.mark.parametrize("bias", ["all", "trlora_only"])
def test_a_layer_without_bias_and_trained_biases_go_together(bias):
    torch.manual_seed(0)
    model = get_peft_model(MLP(bias=False), config(bias=bias))
    assert not biases(model) and torch.isfinite(model(batch())).all()

def test_disabling_an_adapter_with_trained_biases_warns():
    model = adapted(bias="all")
    with pytest.warns(UserWarning, match="bias configured to be 'all'"):
        with model.disable_adapter(): pass

def test_two_adapters_with_biases_are_refused():
    model = adapted(bias="all")
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"): model.add_adapter("other", config(bias="all"))

def test_an_unknown_bias_setting_is_refused():
    with pytest.raises(ValueError, match="bias is 'some'"): config(bias="some")

def test_modules_to_save_are_trained_saved_and_loaded(tmp_path):
    model, x = adapted(2, "ring", targets=["lin0"], modules_to_save=["head"]), batch()
    assert {n.split(".modules_to_save")[0].split(".")[-1] for n, p in model.named_parameters() if p.requires_grad and "trlora_" not in n} == {"head"}
    before = make()(x)
    step(model, x)
    after = model(x).detach()
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path/"adapter_model.safetensors").keys()
    assert {"base_model.model.head.weight", "base_model.model.head.bias"} <= set(keys) and not any("lin1" in k for k in keys)
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    assert torch.allclose(loaded(x), after, atol=1e-6)
    with model.disable_adapter(): assert torch.equal(model(x), before)
    assert near(model.merge_and_unload()(x), after)

def test_each_adapter_keeps_its_own_modules_to_save():
    model = adapted(targets=["lin0"], modules_to_save=["head"])
    step(model, batch())
    first = model(batch()).detach()
    model.add_adapter("other", config(targets=["lin0"], modules_to_save=["head"]))
    model.set_adapter("other")
    assert torch.equal(model(batch()), make()(batch()))
    model.set_adapter("default"); assert torch.equal(model(batch()), first)


# ---- saving and loading

@every_shape
def test_saved_and_loaded_the_adapter_is_equal_to_the_bit(R, residual, side, tmp_path):
    model = adapted(R, residual, side)
    step(model, batch())
    model.save_pretrained(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"} and not (tmp_path/"pytorch_model.bin").exists()
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    ours, theirs = get_peft_model_state_dict(model), get_peft_model_state_dict(loaded)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.allclose(loaded(batch()), model(batch()), atol=1e-6)

@every_shape
def test_the_saved_keys_name_layer_and_part_but_not_the_adapter(R, residual, side, tmp_path):
    adapted(R, residual, side, name="style", targets=["lin0"]).save_pretrained(tmp_path)
    part = {"lora": 1, "ring": 3, "none": 0}[residual]
    expected = {f"base_model.model.lin0.{name}.{i}" for name, n in (("trlora_transform", 3 if R else 0), ("trlora_out", part), ("trlora_in", part)) for i in range(n)}
    assert set(load_file(tmp_path/"style"/"adapter_model.safetensors")) == expected

@every_shape
def test_the_configuration_survives_the_file(R, residual, side, tmp_path):
    model = adapted(R, residual, side, targets=["lin0"], exclude_modules=["head"], alpha=3.0, use_rslora=False, shapes={12: (3, 4)}, modules_to_save=["head"], bias="trlora_only", init="paper")
    model.save_pretrained(tmp_path)
    back, ours = peft.PeftConfig.from_pretrained(tmp_path), model.peft_config["default"]
    assert isinstance(back, TransformedLoraConfig) and back.peft_type == PEFT_TYPE
    fields = set(ours.to_dict()) - {"inference_mode", "auto_mapping", "target_modules", "exclude_modules"}
    assert {k: back.to_dict()[k] for k in fields} == {k: ours.to_dict()[k] for k in fields}
    assert set(back.target_modules) == {"lin0"} and set(back.exclude_modules) == {"head"} and back.shapes["12"] == [3, 4] and back.inference_mode

def test_a_configuration_is_json_and_a_file_with_an_unknown_setting_still_loads(tmp_path):
    adapted().save_pretrained(tmp_path)
    text = json.loads((tmp_path/"adapter_config.json").read_text())
    (tmp_path/"adapter_config.json").write_text(json.dumps(text | {"setting_of_the_future": 1}))
    with pytest.warns(UserWarning, match="setting_of_the_future"): PeftModel.from_pretrained(make(), tmp_path)

def test_saving_does_not_change_the_configuration_in_memory(tmp_path):
    model = adapted()
    before = model.peft_config["default"].to_dict()
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].to_dict() == before and not model.peft_config["default"].inference_mode

def test_selected_adapters_are_saved_and_the_others_are_not(tmp_path):
    model = adapted()
    for name in ("second", "third"): model.add_adapter(name, config(2, "ring"))
    model.save_pretrained(tmp_path, selected_adapters=["default", "third"])
    assert (tmp_path/"adapter_config.json").exists() and (tmp_path/"third"/"adapter_config.json").exists() and not (tmp_path/"second").exists()
    with pytest.raises(ValueError, match="unknown"): model.save_pretrained(tmp_path, selected_adapters=["unknown"])

def test_a_given_state_dict_is_what_is_saved(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path, state_dict={k: torch.zeros_like(v) for k, v in model.state_dict().items()})
    assert all((v == 0).all() for v in load_file(tmp_path/"adapter_model.safetensors").values())

def test_the_trained_adapter_is_what_is_saved(tmp_path):
    model = adapted(2, "ring")
    trained = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    step(model, batch())
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path/"adapter_model.safetensors")
    assert saved.keys() == trained.keys() and all(torch.equal(saved[k], trained[k]) for k in saved)

def test_a_saved_adapter_loads_beside_another_under_a_new_name(tmp_path):
    first = adapted(2, "ring", draw=1); first.save_pretrained(tmp_path)
    model = adapted(1, "lora", "out", draw=2)
    own = model(batch()).detach()
    model.load_adapter(str(tmp_path), "guest")
    assert torch.equal(model(batch()), own) and set(model.peft_config) == {"default", "guest"}
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".guest" in n)
    model.set_adapter("guest")
    assert torch.allclose(model(batch()), first(batch()), atol=1e-6)

@pytest.mark.parametrize("trainable", [False, True])
def test_a_loaded_adapter_is_frozen_unless_it_shall_be_trained(trainable, tmp_path):
    adapted(2, "ring").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make(), tmp_path, is_trainable=trainable)
    assert model.peft_config["default"].inference_mode is not trainable
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if trainable and "trlora_" in n}
    assert not any(torch.equal(model(batch()), net(batch())) for net in [make()])

def test_a_missing_folder_and_a_wrong_adapter_name_are_refused(tmp_path):
    model = adapted()
    with pytest.raises(ValueError, match="(?i)can't find"): PeftModel.from_pretrained(make(), str(tmp_path))
    with pytest.raises(ValueError, match="nobody"): model.set_adapter("nobody")
    with pytest.raises(ValueError, match="nobody"): model.delete_adapter("nobody")

def test_missing_weights_of_an_adapter_are_reported(tmp_path):
    adapted().save_pretrained(tmp_path)
    saved = load_file(tmp_path/"adapter_model.safetensors")
    gone = sorted(saved)[0]
    save_file({k: v for k, v in saved.items() if k != gone}, tmp_path/"adapter_model.safetensors")
    with pytest.warns(UserWarning, match="missing adapter keys"): PeftModel.from_pretrained(make(), tmp_path)

def test_state_dicts_move_an_adapter_without_a_file():
    source, target = adapted(2, "ring", draw=1), adapted(2, "ring", draw=2)
    state = get_peft_model_state_dict(source)
    result = set_peft_model_state_dict(target, state)
    assert not result.unexpected_keys and not any("trlora_" in k for k in result.missing_keys)
    assert torch.equal(source(batch()), target(batch()))

def test_one_adapters_state_dict_holds_nothing_of_the_other():
    model = adapted(2, "ring")
    model.add_adapter("other", config(1, "lora", init_weights=False))
    a, b = get_peft_model_state_dict(model), get_peft_model_state_dict(model, adapter_name="other")
    assert len(a) == 2 * 9 and len(b) == 2 * 5 and not any("other" in k or "default" in k for k in (*a, *b))

@pytest.mark.parametrize("R, residual, side", [(2, "ring", "in"), (1, "lora", "out"), (0, "lora", "in")])
def test_loading_with_little_memory_gives_the_same_adapter(R, residual, side, tmp_path):
    model = adapted(R, residual, side); model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path, low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"} and torch.allclose(loaded(batch()), model(batch()), atol=1e-6)
    loaded.load_adapter(str(tmp_path), "other", low_cpu_mem_usage=True)
    loaded.set_adapter("other")
    assert torch.allclose(loaded(batch()), model(batch()), atol=1e-6)

def test_injecting_with_little_memory_leaves_the_adapter_on_the_meta_device_until_it_is_loaded():
    source = adapted(2, "ring")
    net = peft.inject_adapter_in_model(config(2, "ring"), make(), low_cpu_mem_usage=True)
    assert {p.device.type for n, p in net.named_parameters() if "trlora_" in n} == {"meta"} and {p.device.type for n, p in net.named_parameters() if "trlora_" not in n} == {"cpu"}
    set_peft_model_state_dict(net, {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(source).items()}, low_cpu_mem_usage=True)
    assert torch.allclose(net(batch()), source(batch()), atol=1e-6)

@pytest.mark.parametrize("R, residual", [(2, "ring"), (1, "lora"), (0, "lora")])
def test_a_model_on_the_meta_device_takes_an_adapter(R, residual):
    with torch.device("meta"): net = MLP()
    model = get_peft_model(net, config(R, residual))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(p.numel() for p in adapted(R, residual).parameters() if p.requires_grad)

@pytest.mark.parametrize("R, residual", [(2, "ring"), (1, "lora")])
def test_an_adapter_can_be_added_inside_a_meta_device_context(R, residual):
    with torch.device("meta"): model = get_peft_model(MLP(), config(R, residual))
    assert {p.device.type for p in model.parameters()} == {"meta"}

@pytest.mark.parametrize("R, residual, side", [(2, "ring", "in"), (1, "lora", "out")])
def test_deepcopy_and_pickle_keep_the_adapter(R, residual, side):
    model = adapted(R, residual, side)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch()), model(batch())) and twin.lin0.trlora_settings == model.lin0.trlora_settings
        step(twin, batch())
        assert not torch.equal(twin(batch()), model(batch()))

def test_a_merged_model_survives_deepcopy_and_unmerges_there():
    model = adapted(2, "ring"); before = model.lin0.base_layer.weight.clone()
    model.merge_adapter()
    twin = copy.deepcopy(model); twin.unmerge_adapter()
    assert torch.equal(twin.lin0.base_layer.weight, before) and model.lin0.merged and not twin.lin0.merged

def test_a_base_model_with_an_adapter_injected_saves_like_a_wrapped_one(tmp_path):
    net = peft.inject_adapter_in_model(config(2, "ring", init_weights=False), make())
    state = get_peft_model_state_dict(net)
    assert state and all(k.startswith(("lin0.", "lin1.")) and ".default" not in k for k in state)
    with torch.no_grad(): expected = net(batch())
    twin = peft.inject_adapter_in_model(config(2, "ring"), make())
    set_peft_model_state_dict(twin, state); assert torch.allclose(twin(batch()), expected, atol=1e-6)

def test_saving_writes_a_model_card_and_keeps_an_old_one(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    assert "library_name: peft" in (tmp_path/"README.md").read_text()
    (tmp_path/"README.md").write_text("---\nmeta: hello\n---\nMy own words."); model.save_pretrained(tmp_path)
    text = (tmp_path/"README.md").read_text()
    assert "My own words." in text and "hello" in text and "library_name: peft" in text

def test_hot_swapping_is_refused_with_a_reason(tmp_path):
    from peft.utils.hotswap import hotswap_adapter
    adapted(draw=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="(?i)hot.?swapping only supports"): hotswap_adapter(adapted(draw=2), str(tmp_path), "default")


# ---- merging

@every_shape
def test_merging_keeps_the_output_and_unmerging_restores_the_weight_to_the_bit(R, residual, side):
    model, x = adapted(R, residual, side), batch()
    weights, after = [l.base_layer.weight.clone() for l in layers_of(model)], model(x).detach()
    model.merge_adapter()
    assert near(model(x), after) and not torch.equal(weights[0], model.lin0.base_layer.weight)
    model.unmerge_adapter()
    assert all(torch.equal(w, l.base_layer.weight) for w, l in zip(weights, layers_of(model))) and torch.equal(model(x), after)

@every_shape
def test_merge_and_unload_gives_a_plain_model_and_unload_the_old_one(R, residual, side):
    x, plain = batch(), make()(batch())
    model = adapted(R, residual, side); after = model(x).detach()
    bare = model.merge_and_unload()
    assert type(bare) is MLP and type(bare.lin0) is nn.Linear and not any("trlora" in k for k in bare.state_dict()) and near(bare(x), after)
    old = adapted(R, residual, side).unload()
    assert type(old) is MLP and torch.equal(old(x), plain) and not hasattr(old, "peft_config")

@some_shapes
def test_safe_merging_agrees_with_merging(R, residual, side):
    one, two = adapted(R, residual, side), adapted(R, residual, side)
    one.merge_adapter(); two.merge_adapter(safe_merge=True)
    assert torch.equal(one(batch()), two(batch()))

@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@some_shapes
def test_safe_merging_refuses_a_broken_adapter_and_leaves_the_weight(R, residual, side, bad):
    model = adapted(R, residual, side, targets=["lin0"])
    next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = bad
    before = model.lin0.base_layer.weight.clone()
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"): model.merge_adapter(safe_merge=True)
    assert torch.equal(model.lin0.base_layer.weight, before) and not model.lin0.merged

def test_merging_twice_warns_and_changes_nothing():
    model = adapted(2, "ring"); model.merge_adapter(); once = model(batch())
    with pytest.warns(UserWarning, match="already merged"): model.merge_adapter()
    assert torch.equal(model(batch()), once) and model.lin0.merged_adapters == ["default"]

def test_unmerging_what_is_not_merged_warns_and_changes_nothing():
    model = adapted(); before = model(batch())
    with pytest.warns(UserWarning, match="(?i)already unmerged"): model.unmerge_adapter()
    assert torch.equal(model(batch()), before)

def test_merging_an_adapter_name_as_a_string_is_refused():
    with pytest.raises(TypeError, match="list of strings"): adapted().merge_adapter(adapter_names="default")

@some_shapes
def test_several_adapters_merge_together_or_one_after_the_other(R, residual, side):
    model, x = adapted(R, residual, side), batch()
    model.add_adapter("other", config(2, "ring", init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    both, weight = model(x).detach(), model.lin0.base_layer.weight.clone()
    model.merge_adapter(adapter_names=["default", "other"]); assert near(model(x), both)
    model.unmerge_adapter(); assert torch.equal(model.lin0.base_layer.weight, weight) and torch.equal(model(x), both)
    model.merge_adapter(adapter_names=["default"])
    with pytest.warns(UserWarning, match="Already following adapters were merged"): model.merge_adapter(adapter_names=["other"])
    assert near(model(x), both) and model.lin0.merged_adapters == ["default", "other"]
    assert near(model.merge_and_unload()(x), both)

def test_merging_a_named_adapter_that_is_not_active_merges_that_one():
    model, x = adapted(2, "ring"), batch()
    model.add_adapter("other", config(1, "lora", init_weights=False))
    model.set_adapter("other"); other = model(x).detach(); model.set_adapter("default")
    assert near(model.merge_and_unload(adapter_names=["other"])(x), other)

def test_setting_an_adapter_on_a_merged_model_warns_and_unmerges():
    model = adapted(); model.add_adapter("other", config(2, "ring", init_weights=False))
    own = model(batch()).detach(); model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"): model.set_adapter("other")
    assert not model.lin0.merged
    model.set_adapter("default"); assert torch.equal(model(batch()), own)

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_merging_keeps_the_precision_of_the_base_layer(dtype):
    model = get_peft_model(make().to(dtype), config(2, "ring", init_weights=False)); x = batch().to(dtype)
    after = model(x).detach()
    model.merge_adapter()
    assert model.lin0.base_layer.weight.dtype == dtype and near(model(x).double(), after.double(), {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float64: 1e-5}[dtype])

def test_a_state_dict_of_a_merged_model_has_no_second_copy_of_the_weights():
    model = adapted(); keys = set(model.state_dict()); model.merge_adapter()
    assert set(model.state_dict()) == keys

def test_a_layer_under_two_names_is_merged_and_restored_once():
    model, x = adapted(2, "lora", kind=Alias, targets=["first"]), batch()
    weight = model.first.base_layer.weight.clone()
    model.merge_adapter(); model.unmerge_adapter()
    assert torch.equal(model.first.base_layer.weight, weight) and torch.isfinite(model(x)).all()

def test_layers_that_share_a_weight_are_restored_to_the_bit():
    model, x = adapted(2, "lora", kind=Tied, targets=["first", "second"]), batch()
    weight, after = model.first.base_layer.weight.clone(), model(x).detach()
    model.merge_adapter(); model.unmerge_adapter()
    assert torch.equal(model.first.base_layer.weight, weight) and torch.equal(model.second.base_layer.weight, weight) and torch.equal(model(x), after)

def test_layers_that_share_a_weight_train_apart_from_each_other():
    model = adapted(2, "lora", kind=Tied, targets=["first"])
    assert type(model.second) is nn.Linear and model.second.weight is model.first.base_layer.weight
    step(model, batch()); assert not torch.equal(model(batch()), make(Tied)(batch()))


# ---- switching off, switching over, deleting

@every_shape
def test_disabling_restores_the_base_model_to_the_bit(R, residual, side):
    x, plain = batch(), make()(batch())
    model = adapted(R, residual, side); step(model, x); after = model(x).detach()
    with model.disable_adapter(): assert torch.equal(model(x), plain)
    assert torch.equal(model(x), after)

@some_shapes
def test_disabling_restores_the_base_model_to_the_bit_also_when_merged(R, residual, side):
    x, plain = batch(), make()(batch())
    model = adapted(R, residual, side); after = model(x).detach(); model.merge_adapter()
    with model.disable_adapter(): assert torch.equal(model(x), plain)
    assert near(model(x), after)

def test_disabling_several_adapters_restores_the_base_model():
    x, plain = batch(), make()(batch())
    model = adapted(); model.add_adapter("other", config(2, "ring", init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    with model.disable_adapter(): assert torch.equal(model(x), plain)

def test_the_disabling_context_restores_the_state_it_found():
    model = adapted(); model.base_model.disable_adapter_layers()
    with model.disable_adapter(): pass
    assert all(l.disable_adapters for l in layers_of(model))
    model.base_model.enable_adapter_layers(); assert not any(l.disable_adapters for l in layers_of(model))
    model.lin0.enable_adapters(False)
    with pytest.warns(UserWarning, match="some adapter layers that are enabled"):
        with model.disable_adapter(): pass

def test_a_disabled_adapter_has_no_gradients_and_gets_them_back():
    model = adapted()
    model.base_model.disable_adapter_layers(); assert not any(p.requires_grad for p in model.parameters())
    model.base_model.enable_adapter_layers(); assert all(p.requires_grad for n, p in model.named_parameters() if "trlora_" in n)

def test_switching_adapters_switches_output_and_gradients():
    model, x = adapted(), batch(); first = model(x).detach()
    model.add_adapter("other", config(2, "ring", init_weights=False))
    assert torch.equal(model(x), first)
    model.set_adapter("other")
    assert not torch.allclose(model(x), first, atol=1e-4)
    assert all(p.requires_grad == (".other." in n) for n, p in model.named_parameters() if "trlora_" in n)
    model.set_adapter("default"); assert torch.equal(model(x), first)

def test_a_step_on_one_adapter_leaves_the_other_as_it_was():
    model = adapted(); model.add_adapter("other", config(2, "ring", init_weights=False)); model.set_adapter("other")
    frozen = {n: p.clone() for n, p in model.named_parameters() if ".default" in n}
    step(model, batch())
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)

def test_setting_an_adapter_for_inference_freezes_it():
    model = adapted(); model.add_adapter("other", config())
    model.set_adapter("other", inference_mode=True); assert not any(p.requires_grad for p in model.parameters())
    model.set_adapter("other"); assert any(p.requires_grad for p in model.parameters())

def test_a_configuration_for_inference_trains_nothing():
    assert not any(p.requires_grad for p in adapted(2, "ring", inference_mode=True).parameters())

def test_set_requires_grad_works_on_one_adapter_or_several():
    model = adapted(); model.add_adapter("other", config())
    on = lambda: {n for n in ("default", "other") if any(p.requires_grad for k, p in model.named_parameters() if f".{n}." in k)}
    assert on() == {"default"}
    model.set_requires_grad("default", False); assert on() == set()
    model.set_requires_grad(["default", "other"]); assert on() == {"default", "other"}
    model.set_requires_grad("other", requires_grad=False); assert on() == {"default"}

def test_several_active_adapters_act_and_train_together():
    model, x = adapted(), batch(); model.add_adapter("other", config(2, "ring", init_weights=False))
    one = model(x).detach(); model.set_adapter("other"); two = model(x).detach()
    model.base_model.set_adapter(["default", "other"]); both = model(x)
    assert not near(both, one, 1e-3) and not near(both, two, 1e-3) and model.active_adapters == ["default", "other"]
    both.square().mean().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "trlora_" in n)

def test_adapters_on_different_layers_stand_side_by_side():
    model, x = adapted(targets=["lin0"]), batch(); first = model(x).detach()
    model.add_adapter("other", config(2, "ring", targets=["lin1"], init_weights=False)); assert torch.equal(model(x), first)
    model.set_adapter("other"); second = model(x).detach()
    alone = adapted(2, "ring", targets=["lin1"]); alone.load_state_dict({k.replace(".other", ".default"): v for k, v in model.state_dict().items() if ".other" in k}, strict=False)
    assert torch.allclose(second, alone(x), atol=1e-6)
    model.merge_adapter(); assert near(model(x), second)
    model.unmerge_adapter(); model.set_adapter("default"); assert torch.equal(model(x), first)

def test_an_inactive_adapter_is_deleted_without_a_trace():
    model, x = adapted(), batch(); first = model(x).detach()
    model.add_adapter("other", config(2, "ring")); model.delete_adapter("other")
    assert torch.equal(model(x), first) and not any("other" in k for k in model.state_dict()) and set(model.peft_config) == {"default"}
    assert all("other" not in l.trlora_settings and l.active_adapters == ["default"] for l in layers_of(model))

def test_deleting_the_active_adapter_falls_back_to_the_one_that_is_left():
    model, x = adapted(), batch(); first = model(x).detach()
    model.add_adapter("other", config(2, "ring", init_weights=False)); model.set_adapter("other")
    with pytest.warns(UserWarning, match="Setting active adapter to default"): model.delete_adapter("other")
    assert model.active_adapter == "default" and torch.equal(model(x), first) and all(p.requires_grad for n, p in model.named_parameters() if "trlora_" in n)

def test_deleting_one_of_several_active_adapters_keeps_the_rest_active():
    model, x = adapted(), batch(); first = model(x).detach()
    model.add_adapter("other", config(2, "ring", init_weights=False)); model.base_model.set_adapter(["default", "other"])
    model.delete_adapter("other"); assert model.active_adapters == ["default"] and torch.equal(model(x), first)

def test_deleting_the_last_adapter_leaves_the_base_model():
    model, x = adapted(), batch()
    model.delete_adapter("default")
    assert torch.equal(model.base_model(x), make()(x)) and not model.peft_config and not any("trlora" in k for k in model.state_dict())

def test_a_merged_adapter_cannot_be_deleted():
    model = adapted(); model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge"): model.delete_adapter("default")

def test_a_deleted_adapters_name_can_be_used_again():
    model = adapted(); model.add_adapter("other", config()); model.delete_adapter("other")
    model.add_adapter("other", config(2, "ring", init_weights=False)); model.set_adapter("other")
    assert torch.isfinite(model(batch())).all() and len(model.lin0.trlora_transform["other"]) == 3

def test_a_second_adapter_may_have_another_shape_side_and_scale():
    model = adapted(1, "lora", "in", targets=["lin0"])
    for i, shape in enumerate(SHAPES): model.add_adapter(f"a{i}", config(*shape, targets=["lin0"], r=1 + i % 3, alpha=1.0 + i, init_weights=False))
    outs = []
    for i in range(len(SHAPES)): model.set_adapter(f"a{i}"); outs.append(model(batch()).detach())
    assert all(not torch.allclose(a, b, atol=1e-5) for i, a in enumerate(outs) for b in outs[:i])


# ---- what peft reports

def test_the_status_of_layers_and_model_is_complete():
    model = adapted(); model.add_adapter("other", config(2, "ring"))
    layers = model.get_layer_status()
    assert [l.name.split(".")[-1] for l in layers] == ["lin0", "lin1"]
    for l in layers:
        assert l.module_type == "TransformedLoraLayer" and l.enabled and l.active_adapters == ["default"] and l.merged_adapters == []
        assert l.requires_grad == {"default": True, "other": False} and l.available_adapters == ["default", "other"]
        assert l.devices == {"default": ["cpu"], "other": ["cpu"]} and l.quantization_backend is None
    status = model.get_model_status()
    assert status.base_model_type == "MLP" and status.adapter_model_type == TransformedLoraModel.__name__ and set(status.peft_types) == {"default", "other"}
    assert all("tlora" in t.lower() for t in status.peft_types.values())
    assert (status.num_adapter_layers, status.enabled, status.active_adapters, status.merged_adapters) == (2, True, ["default"], [])
    model.merge_adapter(); assert model.get_model_status().merged_adapters == ["default"]
    with model.disable_adapter(): assert model.get_model_status().enabled is False

@every_shape
def test_the_status_reports_an_adapter_without_one_of_its_parts(R, residual, side):
    status = adapted(R, residual, side).get_model_status()
    assert status.available_adapters == ["default"] and status.requires_grad == {"default": True} and status.devices == {"default": ["cpu"]}

@every_shape
def test_trainable_parameters_are_counted_by_the_formulas_of_the_paper(R, residual, side):
    trained, total = adapted(R, residual, side, targets=["lin0"]).get_nb_trainable_parameters()
    transformed = (2, 2, 3) if side == "in" else (2, 3, 4)  # 12 inputs, 24 outputs
    extra = {"lora": 2 * (12 + 24), "ring": 2**2 * (sum((2, 2, 3)) + sum((2, 3, 4))), "none": 0}[residual]
    assert trained == R**2 * sum(n * n for n in transformed) + extra and total == trained + sum(p.numel() for p in make().parameters())

def test_the_summary_of_trainable_parameters_prints(capsys):
    adapted().print_trainable_parameters(); assert "trainable params:" in capsys.readouterr().out


# ---- precision

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@some_shapes
def test_a_half_precision_model_gets_a_float32_adapter(R, residual, side, dtype):
    torch.manual_seed(0)
    model = get_peft_model(MLP().to(dtype), config(R, residual, side, init_weights=False)); x = batch().to(dtype)
    assert {p.dtype for n, p in model.named_parameters() if "trlora_" in n} == {torch.float32} and model.lin0.base_layer.weight.dtype == dtype
    out = model(x); out.float().square().mean().backward()
    assert out.dtype == dtype and torch.isfinite(out).all() and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)

@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@some_shapes
def test_without_autocast_the_adapter_has_the_precision_of_the_model(R, residual, side, dtype):
    "All but a ring of R > 1, which is the identity only in the precision it was made in."
    torch.manual_seed(0)
    model = get_peft_model(MLP().to(dtype), config(R, residual, side, init_weights=False), autocast_adapter_dtype=False)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if R > 1 and "trlora_transform" in name else dtype), name
    out = model(batch().to(dtype)); out.float().square().mean().backward()
    assert out.dtype == dtype and torch.isfinite(out).all() and all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    model.add_adapter("other", config(R, residual, side), autocast_adapter_dtype=True)
    assert {p.dtype for n, p in model.named_parameters() if ".other." in n} == {torch.float32}

@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@some_shapes
def test_torch_autocast_runs_forward_and_backward(R, residual, side, stored):
    torch.manual_seed(0)
    model, x = get_peft_model(MLP().to(stored), config(R, residual, side, init_weights=False)), batch()
    with torch.autocast("cpu", torch.bfloat16): out = model(x)
    exact = get_peft_model(MLP(), config(R, residual, side)); exact.load_state_dict(model.state_dict())
    assert out.dtype == torch.bfloat16 and near(out.float(), exact(x), 0.05)
    out.float().square().mean().backward(); assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)

@some_shapes
def test_under_autocast_a_new_adapter_changes_nothing(R, residual, side):
    x = batch()
    with torch.autocast("cpu", torch.bfloat16): plain, out = make()(x), adapted(R, residual, side, init_weights=True)(x)
    assert out.dtype == plain.dtype and (torch.equal(out, plain) if R <= 1 and side == "in" else torch.allclose(out.float(), plain.float(), atol=2e-2))

def test_a_model_moved_to_another_precision_takes_its_adapter_along():
    model = adapted(2, "ring"); after = model(batch()).detach()
    assert torch.allclose(model.double()(batch().double()), after.double(), atol=1e-5)

def test_an_input_of_another_precision_than_the_model_fails_as_it_does_without_an_adapter():
    layer = get_peft_model(nn.Sequential(nn.Linear(12, 12)), config(2, "ring", targets=["0"]))
    with pytest.raises(RuntimeError): nn.Linear(12, 12)(batch().double())
    with pytest.raises(RuntimeError): layer(batch().double())


# ---- compilation, mixed batches

def test_torch_compile_traces_the_adapter_in_one_graph():
    model, x = adapted(2, "ring"), batch()
    fast = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.allclose(fast(x), model(x), atol=1e-6)

def test_adapter_names_give_each_sample_of_a_batch_its_own_adapter():
    model, x = adapted(2, "ring"), batch(4); model.add_adapter("other", config(1, "lora", init_weights=False))
    first = model(x).detach(); model.set_adapter("other"); second = model(x).detach()
    names = ["default", "other", "__base__", "default"]
    expected = torch.stack([first[0], second[1], make()(x)[2], first[3]])
    assert torch.allclose(model(x, adapter_names=names), expected, atol=1e-5)
    assert torch.equal(model(x), second)                                 # and only for that call

def two_heads(kind):
    "Adapters a and b, each with a head of its own; b's head is zero."
    config = lambda: kind(target_modules=["0"], modules_to_save=["1"])
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), config(), "a")
    model.add_adapter("b", config())
    model.base_model.model[1].modules_to_save["b"].weight.data.zero_()
    return model.eval()


@pytest.mark.parametrize("kind", [TransformedLoraConfig, peft.LoraConfig])
def test_in_a_mixed_batch_each_sample_has_the_head_of_its_adapter(kind):
    "As peft does for its own adapters, which are the second case."
    model, x = two_heads(kind), torch.randn(3, 8)
    alone = []
    for name in ("a", "b"):
        model.set_adapter(name)
        alone.append(model(x))
    with model.disable_adapter(): alone.append(model(x))
    model.set_adapter("a")
    mixed = model(x, adapter_names=["a", "b", "__base__"])
    assert torch.allclose(mixed, torch.stack([alone[0][0], alone[1][1], alone[2][2]]), atol=1e-6)
    assert not torch.allclose(alone[0][1], alone[1][1])


def test_disabled_adapters_stay_off_in_a_mixed_batch():
    config = TransformedLoraConfig(target_modules=["0"], init_weights=False)
    net, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)
    before = net(x).detach()
    model = peft.get_peft_model(net, config)
    assert not torch.allclose(model(x, adapter_names=["default", "default"]), before)
    model.base_model.disable_adapter_layers()
    assert torch.equal(model(x, adapter_names=["default", "__base__"]), before)


def test_adapter_names_that_cannot_be_meant_are_refused():
    model, x = adapted(2, "ring"), batch(2)
    with pytest.raises(ValueError, match="has 1 names for a batch of 2"): model(x, adapter_names=["default"])
    with pytest.raises(ValueError, match="adapter_names has elsewhere"): model(x, adapter_names=["default", "elsewhere"])
    model.merge_adapter()
    with pytest.raises(ValueError, match="while adapters are merged"): model(x, adapter_names=["default", "__base__"])


# ---- what is refused

class Int8Linear(nn.Linear):
    "Stands for a layer of a k-bit library: integer weights behind the interface of a linear layer."
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight = nn.Parameter(torch.zeros(*self.weight.shape, dtype=torch.int8), requires_grad=False)

class Linear4bit(nn.Linear):
    "As bitsandbytes packs it: half as many bytes as entries."
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight = nn.Parameter(torch.zeros(self.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)

class PackedLinear(nn.Module):
    "As GPTQ packs it: no attribute called weight."
    def __init__(self, i, o):
        super().__init__()
        self.in_features, self.out_features = i, o
        self.register_buffer("qweight", torch.zeros(i // 8, o, dtype=torch.int32))

@pytest.mark.parametrize("layer", [Int8Linear, Linear4bit])
def test_quantised_layers_are_refused_by_name(layer):
    with pytest.raises(TypeError, match="head.*(int8|quantised)"): get_peft_model(nn.ModuleDict({"head": layer(12, 8)}), config(targets=["head"]))

def test_packed_layers_are_refused_by_name():
    with pytest.raises(TypeError, match="head is a PackedLinear"): get_peft_model(nn.ModuleDict({"head": PackedLinear(16, 8)}), config(targets=["head"]))

@pytest.mark.parametrize("layer", [nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Embedding(4, 4), nn.MultiheadAttention(4, 2), nn.LayerNorm(4)])
def test_other_layers_are_refused_by_name(layer):
    with pytest.raises(TypeError, match=f"head is a {type(layer).__name__}"): get_peft_model(nn.ModuleDict({"head": layer}), config(targets=["head"]))

def test_the_transposed_linear_layer_of_gpt2_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel
    net = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=12, n_head=2, vocab_size=32, n_positions=16))
    with pytest.raises(TypeError, match=r"c_attn is a Conv1D"): get_peft_model(net, config(targets=["c_attn"]))

@pytest.mark.parametrize("side, residual, sizes", [("in", "lora", (97, 8)), ("out", "lora", (8, 97)), ("in", "ring", (8, 97))])
def test_a_width_without_factors_is_refused_by_name_and_says_what_to_do(side, residual, sizes):
    with pytest.raises(ValueError, match=r"head: width 97 is prime.*shapes"): get_peft_model(nn.ModuleDict({"head": nn.Linear(*sizes)}), config(1, residual, side, targets=["head"]))
    net = get_peft_model(nn.Sequential(nn.Linear(*sizes)), config(1, residual, side, targets=["0"], shapes={97: (97,)}))
    assert net(torch.randn(3, sizes[0])).shape == (3, sizes[1])

def test_a_refused_second_adapter_leaves_the_model_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 97))
    model = get_peft_model(net, config(targets=["0"], init_weights=False)); before = model(batch()).detach()
    with pytest.raises(ValueError, match="97 is prime"): model.add_adapter("other", config(1, "ring", targets=["0", "1"]))
    assert set(model.peft_config) == {"default"} and torch.equal(model(batch()), before)

def test_a_mixed_model_of_several_methods_is_refused():
    with pytest.raises(ValueError, match="not compatible|not supported|Mixed"): get_peft_model(make(), config(), mixed=True)

def test_a_transform_without_an_effect_is_refused():
    with pytest.raises(ValueError, match="nothing would be trained"): config(0, "none")

@pytest.mark.parametrize("bad, message", [(dict(alpha=float("nan")), "alpha"), (dict(alpha="1"), "alpha"), (dict(shapes={12: (0, 12)}), "shapes"), (dict(shapes={12: (-3, -4)}), "shapes"),
                                          (dict(r=1.5), "r is 1.5"), (dict(transform_rank=True), "transform_rank is True"), (dict(init="orthogonal"), "init is 'orthogonal'")])
def test_settings_that_cannot_be_meant_are_refused(bad, message):
    with pytest.raises((ValueError, TypeError), match=message): config(**bad)


# ---- conversion to LoRA

@pytest.mark.parametrize("R, residual, side", [(2, "ring", "in"), (1, "lora", "out"), (1, "none", "in"), (0, "lora", "in")])
def test_an_exported_lora_of_full_rank_gives_the_same_output_in_plain_peft(R, residual, side, tmp_path):
    model, x = adapted(R, residual, side, targets=["lin0"]), batch()
    peft.save_as_lora(tmp_path, model, rank=min(model.lin0.base_layer.weight.shape))
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    assert isinstance(loaded.peft_config["default"], peft.LoraConfig) and near(loaded(x), model(x), 1e-4)

def test_an_export_by_share_of_the_change_gives_every_layer_its_own_rank():
    config_, weights = peft.convert_to_lora(adapted(2, "ring"), rank=0.99)
    assert weights and all(torch.isfinite(w).all() for w in weights.values())

def test_what_is_merged_can_still_be_exported():
    model, x = adapted(2, "ring", targets=["lin0"]), batch(); after = model(x).detach(); model.merge_adapter()
    config_, weights = peft.convert_to_lora(model, rank=12)
    plain = get_peft_model(make(), config_); set_peft_model_state_dict(plain, weights)
    assert near(plain(x), after, 1e-4)


# ---- transformers

def llama(seed=0, **settings):
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, vocab_size=32, max_position_embeddings=32,
                                                pad_token_id=0, bos_token_id=1, eos_token_id=2) | settings))).eval()

def tokens(): return {"input_ids": torch.tensor([[1, 5, 9, 3], [1, 7, 4, 8]]), "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])}

def tuned_llama(*shape, **settings):
    net = llama()
    torch.manual_seed(1)
    return get_peft_model(net, config(*shape, **(dict(targets=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False) | settings)))

@some_shapes
def test_a_language_model_trains_merges_saves_and_loads(R, residual, side, tmp_path):
    plain, model = llama()(**tokens()).logits, tuned_llama(R, residual, side)
    with model.disable_adapter(): assert torch.equal(model(**tokens()).logits, plain)
    loss = model(**tokens(), labels=tokens()["input_ids"]).loss; loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "trlora_" in n)
    after = model(**tokens()).logits.detach()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.allclose(loaded(**tokens()).logits, after, atol=1e-6) and near(loaded.merge_and_unload()(**tokens()).logits, after)

def test_an_adapted_language_model_generates_and_prepares_its_inputs():
    model = tuned_llama(2, "ring")
    out = model.generate(**tokens(), max_new_tokens=3, do_sample=False)
    assert out.shape == (2, 7)
    assert torch.equal(out, model.merge_and_unload().generate(**tokens(), max_new_tokens=3, do_sample=False))

@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_of_a_language_model_reaches_every_adapter(reentrant):
    model = tuned_llama(2, "ring").train()
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant: model.enable_input_require_grads()
    model(**tokens(), labels=tokens()["input_ids"]).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "trlora_" in n)

def test_a_classifier_saves_its_new_head_with_the_adapter(tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification
    def classifier():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=32, pad_token_id=0, num_labels=3)).eval()
    model = get_peft_model(classifier(), config(2, "ring", targets=["q_proj"], task_type="SEQ_CLS", init_weights=False))
    solver = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    model(**tokens(), labels=torch.tensor([0, 2])).loss.backward(); solver.step()
    model.save_pretrained(tmp_path)
    assert any("score" in k for k in load_file(tmp_path/"adapter_model.safetensors"))
    assert torch.allclose(PeftModel.from_pretrained(classifier(), tmp_path)(**tokens()).logits, model(**tokens()).logits, atol=1e-6)

def test_layers_of_a_language_model_are_picked_by_number():
    model = tuned_llama(targets=["q_proj"], layers_to_transform=[1])
    assert model.targeted_module_names == ["model.layers.1.self_attn.q_proj"]

def test_transformers_own_adapter_methods_take_the_configuration():
    net, plain = llama(), llama()(**tokens()).logits
    with mock.patch("transformers.integrations.peft.check_peft_version"):  # transformers may ask for a peft that is newer than any release
        net.add_adapter(config(2, "ring", targets=["q_proj"], init_weights=False), adapter_name="style")
        net.eval()
    after = net(**tokens()).logits.detach(); assert not torch.allclose(after, plain, atol=1e-4)
    with mock.patch("transformers.integrations.peft.check_peft_version"):
        net.disable_adapters(); assert torch.equal(net(**tokens()).logits, plain)
        net.enable_adapters(); assert torch.equal(net(**tokens()).logits, after) and net.active_adapters() == ["style"]
        assert net.get_adapter_state_dict()

def test_a_model_in_half_precision_on_load_keeps_float32_adapters():
    model = get_peft_model(llama().bfloat16(), config(2, "ring", targets=["q_proj", "v_proj"], init_weights=False))
    assert torch.isfinite(model(**tokens()).logits).all() and {p.dtype for n, p in model.named_parameters() if "trlora_" in n} == {torch.float32}


# ---- diffusers

def unet(seed=0):
    from diffusers import UNet2DConditionModel
    torch.manual_seed(seed)
    return UNet2DConditionModel(sample_size=8, in_channels=3, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=24, attention_head_dim=8, norm_num_groups=8,
                                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()

def paint(net):
    g = torch.Generator().manual_seed(5)
    return net(torch.randn(2, 3, 8, 8, generator=g), torch.tensor(3), torch.randn(2, 5, 24, generator=g)).sample

@some_shapes
def test_a_unet_keeps_switches_scales_and_fuses_an_adapter(R, residual, side):
    plain, net = paint(unet()), unet()
    torch.manual_seed(1); net.add_adapter(config(R, residual, side, targets=ATTENTION, init_weights=False), adapter_name="style")
    after = paint(net).detach()
    assert not torch.allclose(after, plain, atol=1e-4)
    net.disable_adapters(); assert torch.equal(paint(net), plain)
    net.enable_adapters(); assert torch.equal(paint(net), after)
    net.set_adapters("style", 0.0); assert torch.allclose(paint(net), plain, atol=1e-5)
    net.set_adapters("style", 1.0); assert torch.equal(paint(net), after)
    net.fuse_lora(); assert near(paint(net), after, 1e-4)
    net.unfuse_lora(); assert torch.equal(paint(net), after)

def test_a_unet_with_two_adapters_mixes_and_deletes_them():
    net = unet()
    for i, name in enumerate(("one", "two")):
        torch.manual_seed(i); net.add_adapter(config(2, "ring", targets=ATTENTION, init_weights=False), adapter_name=name)
    net.set_adapter("one"); one = paint(net).detach()
    net.set_adapters(["one", "two"], [1.0, 0.0]); assert torch.allclose(paint(net), one, atol=1e-5)
    net.set_adapters(["one", "two"], [1.0, 0.5]); assert not torch.allclose(paint(net), one, atol=1e-4)
    net.delete_adapters("two"); net.set_adapter("one"); assert torch.allclose(paint(net), one, atol=1e-6)

def test_a_wrapped_unet_saves_loads_and_trains_with_checkpointing(tmp_path):
    torch.manual_seed(1)
    model = get_peft_model(unet(), config(2, "ring", targets=ATTENTION, init_weights=False)); after = paint(model).detach()
    model.save_pretrained(tmp_path)
    assert torch.allclose(paint(PeftModel.from_pretrained(unet(), tmp_path)), after, atol=1e-6)
    net = model.get_base_model().train(); net.enable_gradient_checkpointing()
    paint(model).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "trlora_" in n)

def test_an_exported_lora_loads_into_diffusers(tmp_path):
    torch.manual_seed(1)
    model = get_peft_model(unet(), config(1, "lora", targets=r"down_blocks.*to_(q|k|v|out\.0)", init_weights=False)); after = paint(model).detach()
    peft.save_as_lora(tmp_path, model, rank=16)  # these layers have 16 outputs: nothing is lost
    net = unet()
    weights = load_file(tmp_path/"adapter_model.safetensors")
    ranks = json.loads((tmp_path/"adapter_config.json").read_text())
    net.load_lora_adapter({k.removeprefix("base_model.model."): v for k, v in weights.items()}, prefix=None)
    assert ranks["peft_type"] == "LORA" and near(paint(net), after, 1e-3)

def test_a_unet_saves_its_adapter_by_diffusers_method_and_peft_reads_it(tmp_path):
    net = unet(); torch.manual_seed(1)
    net.add_adapter(config(2, "ring", targets=ATTENTION, init_weights=False)); after = paint(net).detach()
    net.save_lora_adapter(tmp_path)
    weights = load_file(next(Path(tmp_path).glob("*.safetensors")))
    twin = unet(); twin.add_adapter(config(2, "ring", targets=ATTENTION))
    set_peft_model_state_dict(twin, weights); assert torch.allclose(paint(twin), after, atol=1e-6)
