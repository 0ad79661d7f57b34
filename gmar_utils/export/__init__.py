"""One ONNX graph that returns a model's attention and its gradients: for browsers, phones and C++."""

from .saving import export

__all__ = ["export"]
