"""Whatever is wrapped around a model, the map is the bare model's; what a model may return; threads."""

import copy
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import build, images
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gmar_utils import explain, probability, trace
from gmar_utils.capture.layout import logits_of, problem_type, unwrap
from gmar_utils.capture.settling import settled

METHODS = ("gmar", "rollout", "legrad", "grad-cam", "chefer", "attention")


class Thin(nn.Module):
    """A user's module around a model, which returns its logits in some way of its own."""

    def __init__(self, model, output):
        super().__init__()
        self.backbone, self.output = model, output

    def forward(self, x):
        return self.output(self.backbone(x).logits, x)


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_blocks(model):
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == 3:
            for i, block in enumerate(module):
                module[i] = compiled(block)
    return model


def compiled_in_place(model):
    model = copy.deepcopy(model)
    model.compile(backend="eager")
    next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 3)[1].compile(backend="eager")
    return model


WRAPPERS = {
    "tensor": lambda m: Thin(m, lambda logits, x: logits),
    "dict": lambda m: Thin(m, lambda logits, x: {"features": x.mean((2, 3)), "logits": logits}),
    "tuple": lambda m: Thin(m, lambda logits, x: (logits, x)),
    "tuple of one": lambda m: Thin(m, lambda logits, x: (logits,)),
    "list, logits last": lambda m: Thin(m, lambda logits, x: [x, logits]),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "compile": compiled,
    "DataParallel of compile": lambda m: nn.DataParallel(compiled(m)),
    "compile of DataParallel": lambda m: compiled(nn.DataParallel(m)),
    "compiled blocks": compiled_blocks,
    "compiled in place": compiled_in_place,
    "Sequential": lambda m: nn.Sequential(nn.Identity(), Thin(m, lambda logits, x: logits)),
    "DataParallel of dict": lambda m: nn.DataParallel(Thin(m, lambda logits, x: {"logits": logits})),
    "no_grad": lambda m: Thin(m, torch.no_grad()(lambda logits, x: logits)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["vit", "beit", "deit-distilled", "dinov2-registers"])
def test_a_wrapper_changes_no_map(name, wrapper):
    model, x = build(name), images(name)
    wrapped = WRAPPERS[wrapper](model)
    if wrapper == "no_grad":  # the head's result, too, must have a gradient
        wrapped.forward = torch.no_grad()(wrapped.forward)
    for method in METHODS:
        expected = explain(model, x, method, 1, upsample=False)
        got = explain(wrapped, x, method, 1, upsample=False)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0, msg=f"{method}")
    torch.testing.assert_close(trace(wrapped, x).readout, trace(model, x).readout)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
@pytest.mark.parametrize("name", ["vit", "beit", "deit-distilled", "dinov2"])
def test_an_adapter_is_read_as_the_merged_model(name):
    import peft

    targets = ["query", "value", "q_proj", "v_proj"]
    adapted = peft.get_peft_model(build(name), peft.LoraConfig(target_modules=targets, init_lora_weights=False)).eval()
    merged, x = copy.deepcopy(adapted).merge_and_unload().eval(), images(name)
    for method in METHODS:
        expected = explain(merged, x, method, 1)
        torch.testing.assert_close(explain(adapted, x, method, 1), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(explain(nn.DataParallel(adapted), x, method, 1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wrapper", [w for w in WRAPPERS if "Parallel" in w or "Averaged" in w or w == "compile"])
def test_the_module_that_runs_is_not_a_wrapper_that_copies_or_compiles(wrapper):
    """Hooks and function modes reach neither a replica on another GPU nor a compiled graph."""
    inner = type(unwrap(WRAPPERS[wrapper](build("vit")))).__name__
    assert inner == ("Thin" if "dict" in wrapper else "ViTForImageClassification")


@pytest.mark.parametrize(
    "compile_part", [lambda m: m, lambda m: m.vit, lambda m: m.vit.layers[2], lambda m: m.classifier]
)
@pytest.mark.parametrize("in_place", [True, False])
def test_nothing_is_compiled_during_a_trace(compile_part, in_place):
    def backend(graph, inputs):
        raise AssertionError("a compiled graph would hide its attention")

    model, x = build("vit"), images("vit")
    expected = {method: explain(model, x, method, 1) for method in METHODS}
    part = compile_part(model)
    if in_place:
        part.compile(backend=backend)
    elif part is model:
        model = torch.compile(model, backend=backend)
    else:
        holder = next(m for m in model.modules() if any(c is part for c in m.children()))
        name = next(n for n, c in holder.named_children() if c is part)
        setattr(holder, name, torch.compile(part, backend=backend))
    for method in METHODS:
        torch.testing.assert_close(explain(model, x, method, 1), expected[method], atol=1e-5, rtol=0)


def test_a_user_module_called_module_is_no_wrapper_of_torch():
    class Doubled(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return -self.module(x).logits

    model, x = build("vit"), images("vit")
    assert torch.equal(trace(Doubled(model), x).target, model(x).logits.argmin(1))


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("wrapper", ["DataParallel", "AveragedModel", "compile", "tensor", "dict", "Sequential"])
def test_the_kind_of_problem_is_found_behind_wrappers(wrapper, kind):
    model, x = build("vit", problem_type=kind), images("vit")
    wrapped = WRAPPERS[wrapper](model)
    assert problem_type(wrapped) == kind
    logits, target = model(x).logits.detach(), torch.tensor([3, 1])
    if kind == "regression":
        with pytest.raises(ValueError, match="regression"):
            probability(wrapped, logits, target)
    else:
        torch.testing.assert_close(probability(wrapped, logits, target), logits[[0, 1], target].sigmoid())


def test_a_regression_of_one_number_keeps_its_sign_behind_a_wrapper():
    model, x = build("vit", labels=1, problem_type="regression"), images("vit", 4)
    assert trace(nn.DataParallel(model), x).target.tolist() == [1, 1, 1, 1]


# --- what a model may return ------------------------------------------------------------------------------------------

B_K = torch.zeros(2, 5)


@pytest.mark.parametrize(
    "output",
    [
        B_K,
        {"logits": B_K},
        (B_K,),
        (B_K, torch.zeros(2, 17, 32)),
        (torch.zeros(2, 17, 32), B_K),
        [B_K, None, "x"],
        (torch.zeros(2, 3).long(), B_K),
        (torch.tensor(0.0), B_K),  # (loss, logits)
    ],
)
def test_logits_are_found(output):
    assert logits_of(output) is B_K


@pytest.mark.parametrize(
    "output, words",
    [
        ((torch.zeros(2, 32), B_K), "nothing says which"),
        ((B_K, B_K), "nothing says which"),
        ([torch.zeros(2, 9), torch.zeros(2, 1), B_K], "3 tensors"),
        (torch.zeros(2, 17, 5), "classification head"),
        (torch.zeros(5), "classification head"),
        ({"scores": B_K}, "classification head"),
        ((torch.zeros(2, 17, 32),), "classification head"),
        ((), "classification head"),
        (None, "classification head"),
        ("text", "classification head"),
        (B_K.long(), "classification head"),
        ({"logits": None}, "classification head"),
    ],
)
def test_other_outputs_are_refused(output, words):
    with pytest.raises(ValueError, match=words):
        logits_of(output)


@pytest.mark.parametrize("method", METHODS)
def test_features_are_never_explained_in_place_of_classes(method):
    model = Thin(build("vit"), lambda logits, x: (x.flatten(1)[:, :32], logits))
    with pytest.raises(ValueError, match="nothing says which"):
        explain(model, images("vit"), method)


# --- threads ----------------------------------------------------------------------------------------------------------


def test_many_threads_get_what_one_thread_gets_and_leave_the_model_as_it_was():
    model, x = build("vit"), images("vit")
    expected = {m: explain(model, x, m, 1) for m in METHODS}
    model.set_attn_implementation("eager")
    model.train()
    objects = [model, WRAPPERS["tensor"](model), nn.DataParallel(model), WRAPPERS["dict"](model)]

    def work(i):
        method, wrapped = METHODS[i % len(METHODS)], objects[i // len(METHODS) % len(objects)]
        return float((explain(wrapped, x, method, 1) - expected[method]).abs().max())

    with ThreadPoolExecutor(10) as pool:
        assert max(pool.map(work, range(96))) < 1e-5
    assert model.config._attn_implementation == "eager"
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("wrapper", ["tensor", "DataParallel", "compile", "Sequential", None])
@pytest.mark.parametrize("method", ["gmar", "legrad"])
def test_a_second_thread_waits_for_the_first(wrapper, method):
    """Also behind another wrapper around the same blocks: they share the flags and hooks that a trace changes."""
    model, x = build("vit"), images("vit")
    other = model if wrapper is None else WRAPPERS[wrapper](model)
    expected, waited = explain(model, x, method, 1), []

    with ThreadPoolExecutor(1) as pool:
        with settled(model):
            waiting = pool.submit(explain, other, x, method, 1)
            with settled(model):  # the same thread goes on
                torch.testing.assert_close(explain(other, x, method, 1), expected, atol=1e-5, rtol=0)
            waited.append(not waiting.done())
        torch.testing.assert_close(waiting.result(60), expected, atol=1e-5, rtol=0)
    assert waited == [True]


def test_a_thread_that_waits_for_a_model_holds_nothing_that_its_owner_needs():
    model, x = build("vit"), images("vit")
    first, second = trace(model, x, lazy=True), trace(model, x, lazy=True)
    with ThreadPoolExecutor(1) as pool, settled(model):
        waiting = pool.submit(lambda: second.gradients)
        time.sleep(0.3)  # it stands in front of the model, inside the property
        assert len(first.gradients) == len(first.attentions)
        assert not waiting.done()
    torch.testing.assert_close(second.gradients, first.gradients)


@pytest.mark.parametrize("method", ["gmar", "legrad", "grad-cam", "rollout"])
def test_a_plain_pass_inside_a_trace_is_neither_seen_nor_changed(method):
    """Another thread runs the model while the hooks of a trace are in it."""
    model, x = build("vit"), images("vit")
    expected, plain, others = explain(model, x, method, 1), model(x).logits.detach(), []

    def beside(*_):
        if not others:
            others.append(None)
            with ThreadPoolExecutor(1) as pool:
                others.append(pool.submit(lambda: model(x).logits.detach()).result())

    hook = model.vit.layers[2].register_forward_pre_hook(beside)
    torch.testing.assert_close(explain(model, x, method, 1), expected, atol=1e-5, rtol=0)
    hook.remove()
    torch.testing.assert_close(others[1], plain, atol=1e-5, rtol=1e-4)


def test_plain_passes_in_other_threads_are_left_alone():
    model, x = build("vit"), images("vit")
    expected = model(x).logits.detach()

    def work(i):
        return explain(model, x, "legrad") if i % 2 else model(x).logits.detach()

    with ThreadPoolExecutor(8) as pool:
        for plain in list(pool.map(work, range(64)))[::2]:
            torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-4)


def test_metrics_in_other_threads_wait_too():
    from gmar_utils import metrics

    model, x = build("vit"), images("vit")
    maps = explain(model, x, "gmar", 1, upsample=False)
    curve = metrics.insertion(model, x, maps, 1, steps=4).scores

    def work(i):
        if i % 2:
            return (explain(model, x, "gmar", 1, upsample=False) - maps).abs().max()
        return (metrics.insertion(model, x, maps, 1, steps=4).scores - curve).abs().max()

    with ThreadPoolExecutor(8) as pool:
        assert max(map(float, pool.map(work, range(32)))) < 1e-5
