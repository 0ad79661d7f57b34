"""Small random models of every family, and slow, obvious re-implementations of every map, in float64."""

import torch
import transformers as hf

SHAPE = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, patch_size=8)


def build(name: str, labels: int = 5, **config):
    """A random model of a family, with weights large enough for attention that is not flat."""
    torch.manual_seed(0)
    shape = SHAPE | {"image_size": 32, "num_labels": labels, "initializer_range": 0.3} | config
    model = {
        "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**shape)),
        "vit-wide": lambda: hf.ViTForImageClassification(hf.ViTConfig(**shape | {"image_size": (32, 48)})),
        "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**shape)),
        "deit-distilled": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**shape)),
        "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**shape)),
        "dinov2-registers": lambda: hf.Dinov2WithRegistersForImageClassification(
            hf.Dinov2WithRegistersConfig(num_register_tokens=4, **shape)
        ),
        "beit": lambda: hf.BeitForImageClassification(
            hf.BeitConfig(use_relative_position_bias=True, use_mean_pooling=True, **shape)
        ),
        "data2vec": lambda: hf.Data2VecVisionForImageClassification(
            hf.Data2VecVisionConfig(use_relative_position_bias=True, **shape)
        ),
        "clip": lambda: hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=shape, num_labels=labels)),
        "metaclip2": lambda: hf.MetaClip2ForImageClassification(
            hf.MetaClip2Config(vision_config=shape, num_labels=labels)
        ),
        "siglip": lambda: hf.SiglipForImageClassification(hf.SiglipConfig(vision_config=shape, num_labels=labels)),
        "vit-msn": lambda: hf.ViTMSNForImageClassification(hf.ViTMSNConfig(**shape)),
        "ijepa": lambda: hf.IJepaForImageClassification(hf.IJepaConfig(**shape)),
    }[name]()
    for parameter in model.parameters():
        if parameter.abs().sum() == 0:  # biases, position embeddings and layer scales that start at zero
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


FAMILIES = ["vit", "vit-wide", "deit", "deit-distilled", "dinov2", "dinov2-registers", "beit"]
MORE_FAMILIES = ["data2vec", "clip", "metaclip2", "siglip", "vit-msn", "ijepa"]
PREFIX = {"vit": 1, "vit-wide": 1, "deit": 2, "deit-distilled": 2, "dinov2": 1, "dinov2-registers": 5, "beit": 1}


def images(name: str, batch: int = 2, seed: int = 1):
    torch.manual_seed(seed)
    return torch.randn(batch, 3, 32, 48 if name == "vit-wide" else 32)


def grid(name: str):
    return (4, 6) if name == "vit-wide" else (4, 4)


def slow_readout(name: str, tokens: int):
    v = torch.zeros(tokens, dtype=torch.float64)
    if name == "beit":
        v[1:] = 1 / (tokens - 1)
    elif name == "deit-distilled":
        v[0] = v[1] = 0.5
    else:
        v[0] = 1
    return v


def slow_logits(name: str, model, tokens):
    """What each family's head does with a block's output, spelled out."""
    base = model.base_model
    if name == "deit-distilled":
        x = base.layernorm(tokens)
        return 0.5 * model.cls_classifier(x[:, 0]) + 0.5 * model.distillation_classifier(x[:, 1])
    if name.startswith("dinov2"):
        x = base.layernorm(tokens)
        return model.classifier(torch.cat([x[:, 0], x[:, PREFIX[name] :].mean(1)], -1))
    if name == "beit":
        return model.classifier(base.pooler.layernorm(tokens[:, 1:].mean(1)))
    return model.classifier(base.layernorm(tokens)[:, 0])


def slow_forward(name: str, model, x, target):
    """Eager attention in float64, whole graph kept: attentions, gradients, block outputs, last norm, its gradient."""
    model = model.double()
    model.set_attn_implementation("eager")
    outputs, norms = [], []
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    hooks = [
        m.register_forward_hook(lambda m, i, o: outputs.append(o[0] if isinstance(o, tuple) else o)) for m in layers
    ]
    norm = layers[-1].norm1 if name.startswith("dinov2") else layers[-1].layernorm_before
    hooks.append(norm.register_forward_hook(lambda m, i, o: norms.append(o)))
    x = x.double().requires_grad_()
    out = model(x, output_attentions=True)
    for hook in hooks:
        hook.remove()
    y = sum(out.logits[i, t] for i, t in enumerate(target))
    gradients = torch.autograd.grad(y, [*out.attentions, norms[0]], retain_graph=True)
    return out.attentions, gradients[:-1], outputs, norms[0], gradients[-1], out.logits


def slow_weights(gradients, norm, attentions=None):
    rows = []
    for layer, g in enumerate(gradients):
        batch, heads = g.shape[:2]
        w = torch.empty(batch, heads, dtype=torch.float64)
        for b in range(batch):
            for h in range(heads):
                entries = g[b, h].flatten().tolist()
                if norm == "bth":
                    w[b, h] = (attentions[layer][b, h].T @ g[b, h]).abs().mean()
                else:
                    w[b, h] = {
                        "l1": sum(abs(e) for e in entries),
                        "l2": sum(e * e for e in entries) ** 0.5,
                        None: 1.0,
                    }[norm]
            w[b] /= w[b].sum()
        rows.append(w)
    return rows


def slow_occlusion(model, x, target, grid, size=2, baseline=0.0, batch_size=None):
    """Hide one square after the other, 8 pixels a patch; a patch gets its square's drop."""
    x, model = x.double(), model.double()
    drops = torch.zeros(len(x), *grid, dtype=torch.float64)
    with torch.no_grad():
        for b, t in enumerate(target):
            full = model(x[b : b + 1]).logits[0, t]
            for row in range(0, grid[0], size):
                for column in range(0, grid[1], size):
                    hidden = x[b : b + 1].clone()
                    hidden[:, :, 8 * row : 8 * (row + size), 8 * column : 8 * (column + size)] = baseline
                    drops[b, row : row + size, column : column + size] = full - model(hidden).logits[0, t]
    return drops


def slow_rollout(attentions, weights, v0, alpha, variant):
    """The N×N recursion, one image at a time; the products divided by (1 + α)^L."""
    scores = []
    for b in range(len(attentions[0])):
        fused = [
            sum(w[b, h] * a[b, h].double() for h in range(a.shape[1])) for a, w in zip(attentions, weights, strict=True)
        ]
        eye = torch.eye(fused[0].shape[0], dtype=torch.float64)
        result = eye.clone()
        for a in fused:
            if variant == "paper":
                result = result @ a + alpha * eye
            elif variant == "report":
                result = result @ (a + alpha * eye) / (1 + alpha)
            else:
                result = (a + alpha * eye) @ result / (1 + alpha)
        scores.append(v0 @ result)
    return torch.stack(scores)


def slow_minmax(maps):
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return ((maps - low) / (high - low)).nan_to_num(0)  # a constant map becomes 0
