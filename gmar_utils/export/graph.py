"""The graph: a forward pass, and the backward pass to every layer's attention written out beside it.

Names as in METHODS: N tokens, D channels, H heads of width d, A attention, G = ∂y/∂A. One picture at a time, so tokens
are a matrix (N, D). A stored matrix W (out, in) serves both directions as it is: x Wᵀ is a Gemm with transB, and a
gradient goes back through it as g W.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .weights import Linear, Norm, Weights

OPSET, IR = 21, 10  # of 2024: also read by runtimes that are some years old
ENDS = 16  # bits at least of the patch embedding and the classifier: little to store, and every token passes through
OUTPUTS = ("logits", "attention", "gradient", "activation", "activation_gradient", "legrad")


class Graph:
    """Nodes and stored arrays; every method returns the name of what it adds."""

    def __init__(self, bits: int):
        self.bits, self.nodes, self.stored, self.names = bits, [], [], {}

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str | list[str]:
        """A node with new names for its outputs; several come as a list."""
        names = [f"{op}_{len(self.nodes)}{f'_{i}' if i else ''}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def store(self, array: np.ndarray | np.generic) -> str:
        """An array as it is, once."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.names:
            self.names[key] = f"stored_{len(self.stored)}"
            self.stored.append(numpy_helper.from_array(array, self.names[key]))
        return self.names[key]

    def number(self, value: float) -> str:
        """A stored float32."""
        return self.store(np.float32(value))

    def shape(self, *sides: int) -> str:
        """Stored whole numbers (n,): a shape, or axes."""
        return self.store(np.array(sides, dtype=np.int64))

    def matrix(self, weight: np.ndarray, least_bits: int = 8) -> str:
        """Weights (out, …) in the graph's bits, or more, made float32 inside the graph.

        8 bits: whole numbers from −127 to 127 and a scale for each output channel."""
        bits = max(self.bits, least_bits)
        if bits == 32:
            return self.store(weight)
        if bits == 16:
            return self.add("Cast", self.store(weight.astype(np.float16)), to=TensorProto.FLOAT)
        scale, whole = quantised(weight)
        return self.add("DequantizeLinear", self.store(whole), self.store(scale), axis=0)

    def linear(self, x: str, weight: str, layer: Linear) -> str:
        """x Wᵀ + b; `weight` is the name of W, as `matrix` gives it."""
        return self.add("Gemm", x, weight, self.store(layer.bias), transB=1)

    def norm(self, x: str, norm: Norm) -> tuple[str, tuple]:
        """LayerNorm, and what its backward pass needs."""
        scale = self.store(norm.scale)
        y, mean, inverse = self.add("LayerNormalization", x, scale, self.store(norm.shift), outputs=3, epsilon=norm.eps)
        return y, (self.add("Mul", self.add("Sub", x, mean), inverse), inverse, scale)

    def norm_back(self, gradient: str, kept: tuple) -> str:
        """(g − mean(g) − x̂ mean(g x̂)) / σ with g = gradient × scale and x̂ the normalised tokens."""
        normalised, inverse, scale = kept
        g, last = self.add("Mul", gradient, scale), self.shape(-1)
        along = self.add("ReduceMean", self.add("Mul", g, normalised), last)
        centred = self.add("Sub", g, self.add("ReduceMean", g, last))
        return self.add("Mul", self.add("Sub", centred, self.add("Mul", normalised, along)), inverse)

    def gelu_slope(self, x: str) -> str:
        """Φ(x) + x φ(x)."""
        error = self.add("Erf", self.add("Mul", x, self.number(1 / math.sqrt(2))))
        area = self.add("Mul", self.add("Add", error, self.number(1)), self.number(0.5))
        bell = self.add("Exp", self.add("Mul", self.add("Mul", x, x), self.number(-0.5)))
        return self.add("Add", area, self.add("Mul", self.add("Mul", x, bell), self.number(1 / math.sqrt(2 * math.pi))))

    def transpose(self, x: str, *order: int) -> str:
        """x with its axes in this order."""
        return self.add("Transpose", x, perm=order)


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale (out,) float32 and whole numbers (out, …) int8 with weight ≈ scale × whole."""
    flat = weight.reshape(len(weight), -1)
    scale = np.maximum(np.abs(flat).max(1), np.finfo(np.float32).tiny * 127) / 127
    whole = np.clip(np.rint(flat / scale[:, None]), -127, 127).astype(np.int8)
    return scale.astype(np.float32), whole.reshape(weight.shape)


def build(weights: Weights, size: tuple[int, int], bits: int = 8) -> onnx.ModelProto:
    """pixels (1, channels, height, width), target (1,) → OUTPUTS, as an ONNX model.

    target is a class id, or a negative number for the predicted class."""
    g, w, tokens = Graph(bits), weights, len(weights.table)
    x, kept = _embed(g, w), []
    for block in w.blocks:
        x, seen = _forward(g, x, block, w)
        kept.append(seen)
    classifier = g.matrix(w.classifier.weight, ENDS)
    pooled = g.add("MatMul", g.store(w.pooling), kept[-1]["final"][0])
    logits = g.linear(g.add("Reshape", pooled, g.shape(1, -1)), classifier, w.classifier)
    outputs = _backward(g, w, kept, _seed(g, w, logits, classifier))
    outputs |= {"logits": logits, "attention": g.add("Concat", *(k["attention"] for k in kept), axis=0)}
    g.nodes += [helper.make_node("Identity", [outputs[name]], [name]) for name in OUTPUTS]
    maps, width = (len(w.blocks), w.heads, tokens, tokens), w.table.shape[1]
    shapes = ((1, len(w.classifier.bias)), maps, maps, (tokens, width), (tokens, width), (len(w.blocks), tokens))
    inputs = [
        helper.make_tensor_value_info("pixels", TensorProto.FLOAT, (1, w.patches.shape[1], *size)),
        helper.make_tensor_value_info("target", TensorProto.INT64, (1,)),
    ]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(OUTPUTS, shapes, strict=True)]
    graph = helper.make_graph(g.nodes, "gmar_utils", inputs, results, g.stored)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="gmar_utils"
    )


def _embed(g, w):
    """Tokens (N, D): the table, and on its patch rows what the patches add."""
    width = len(w.patches)
    patches = g.add("Conv", "pixels", g.matrix(w.patches, ENDS), strides=w.stride)
    rows = g.transpose(g.add("Reshape", patches, g.shape(width, -1)), 1, 0)
    padded = g.add("Pad", rows, g.shape(w.prefix_tokens, 0, 0, 0))
    return g.add("Add", padded, g.store(w.table))


def _forward(g, x, block, w):
    tokens, heads = len(w.table), w.heads
    weight = {name: g.matrix(getattr(block, name).weight) for name in ("qkv", "out", "up", "down")}
    activation, norm1 = g.norm(x, block.norm1)
    qkv = g.add("Reshape", g.linear(activation, weight["qkv"], block.qkv), g.shape(tokens, 3, heads, -1))
    q, k, v = g.add("Split", g.transpose(qkv, 1, 2, 0, 3), outputs=3, axis=0, num_outputs=3)  # (1, H, N, d) each
    attention = g.add("Softmax", g.add("MatMul", q, g.transpose(k, 0, 1, 3, 2)), axis=-1)
    mixed = g.transpose(g.add("MatMul", attention, v), 0, 2, 1, 3)
    x = g.add("Add", x, g.linear(g.add("Reshape", mixed, g.shape(tokens, -1)), weight["out"], block.out))
    y, norm2 = g.norm(x, block.norm2)
    hidden = g.linear(y, weight["up"], block.up)
    x = g.add("Add", x, g.linear(g.add("Gelu", hidden), weight["down"], block.down))
    return x, {
        "q": q,
        "k": k,
        "v": v,
        "attention": attention,
        "norm1": norm1,
        "norm2": norm2,
        "hidden": hidden,
        "weight": weight,
        "activation": activation,
        "final": g.norm(x, w.norm),
    }


def _seed(g, w, logits, classifier):
    """∂y/∂(the tokens after the final norm) (N, D): the target's row of the classifier, where its tokens are read."""
    if len(w.classifier.bias) > 1:
        predicted = g.add("ArgMax", logits, axis=1, keepdims=0)
    else:  # one logit stands for two classes: 1 explains y, 0 explains −y
        positive = g.add("Greater", g.add("Reshape", logits, g.shape(-1)), g.number(0))
        predicted = g.add("Cast", positive, to=TensorProto.INT64)
    target = g.add("Where", g.add("Less", "target", g.shape(0)), predicted, "target")
    if len(w.classifier.bias) > 1:
        row = g.add("Gather", classifier, target, axis=0)
    else:
        row = g.add("Mul", classifier, g.add("Gather", g.store(np.array([-1, 1], np.float32)), target))
    row = g.add("Reshape", row, g.shape(len(w.pooling), -1))
    return g.add("Gemm", g.store(w.pooling), row, transA=1)


def _backward(g, w, kept, seed):
    """From the last block to the first. Two gradients share each block's way back to its attention: that of y, and
    that of the block's own prediction (the final norm and the classifier on its own tokens), which LeGrad reads."""
    gradients, relevances, whole, outputs = [], [], None, {"activation": kept[-1]["activation"]}
    for seen in reversed(kept):
        own = g.norm_back(seed, seen["final"][1])
        whole = own if whole is None else whole  # at the last block the two are one
        both = g.add("Concat", *(g.add("Unsqueeze", x, g.shape(0)) for x in (whole, own)), axis=0)  # (2, N, D)
        inner = g.add("MatMul", both, seen["weight"]["down"])
        inner = g.add("MatMul", g.add("Mul", inner, g.gelu_slope(seen["hidden"])), seen["weight"]["up"])
        both = g.add("Add", both, g.norm_back(inner, seen["norm2"]))
        mixed = g.add("MatMul", both, seen["weight"]["out"])
        mixed = g.transpose(g.add("Reshape", mixed, g.shape(2, len(w.table), w.heads, -1)), 0, 2, 1, 3)  # (2, H, N, d)
        slopes = g.add("MatMul", mixed, g.transpose(seen["v"], 0, 1, 3, 2))  # (2, H, N, N)
        gradient, local = g.add("Split", slopes, outputs=2, axis=0, num_outputs=2)
        gradients.append(gradient)
        relevances.append(g.add("ReduceMean", g.add("Relu", local), g.shape(1, 2), keepdims=0))  # (1, N)
        if seen is kept[0] and len(outputs) > 1:
            break  # nothing below the first block is asked for
        before, mixed = (g.add("Gather", x, g.store(np.int64(0)), axis=0) for x in (both, mixed))  # y's alone
        below = _through_attention(g, w, seen, gradient, mixed)
        outputs.setdefault("activation_gradient", below)
        whole = g.add("Add", before, g.norm_back(below, seen["norm1"]))
    outputs["gradient"] = g.add("Concat", *reversed(gradients), axis=0)
    outputs["legrad"] = g.add("Concat", *reversed(relevances), axis=0)
    return outputs


def _through_attention(g, w, seen, gradient, mixed):
    """∂y/∂(norm1's output) (N, D), from ∂y/∂A (1, H, N, N) and the gradient (H, N, d) of what attention passed on."""
    a = seen["attention"]
    along = g.add("ReduceSum", g.add("Mul", gradient, a), g.shape(-1))
    scores = g.add("Mul", a, g.add("Sub", gradient, along))
    q = g.add("MatMul", scores, seen["k"])
    k = g.add("MatMul", g.transpose(scores, 0, 1, 3, 2), seen["q"])
    v = g.add("MatMul", g.transpose(a, 0, 1, 3, 2), mixed)
    qkv = g.transpose(g.add("Concat", q, k, v, axis=0), 2, 0, 1, 3)  # (N, 3, H, d)
    return g.add("MatMul", g.add("Reshape", qkv, g.shape(len(w.table), -1)), seen["weight"]["qkv"])
