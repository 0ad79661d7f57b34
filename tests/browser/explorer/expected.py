"""What a page should show."""

import base64
import json
import zlib

import numpy as np
import torch

from gmar_utils import explorer
from gmar_utils.explorer import packing
from gmar_utils.methods.weighting import VARIANTS
from gmar_utils.photo import minmax

STATE = 'script[type="application/vnd.jupyter.widget-state+json"]'


class Expected:
    """An explorer's numbers, computed by the library from the state that is saved in the page."""

    def __init__(self, page, show):
        state = json.loads(page.locator(STATE).inner_text())["state"]
        views = [m for m in state.values() if m["state"].get("show") == [show]]
        self.view = views[0]["state"]
        self.photos = [self._photo(state[p.removeprefix("IPY_MODEL_")]) for p in self.view["photos"]]
        self.settings = {k: self.view[k] for k in ("photo", "target", "norm", "variant", "alpha", "layers", "muted")}

    @staticmethod
    def _photo(model):
        data = {b["path"][0]: base64.b64decode(b["data"]) for b in model["buffers"]}
        info = model["state"]["info"]
        layers, heads, n = info["shape"]
        targets = len(info["targets"])
        maps = np.frombuffer(data["maps"], np.uint16).reshape(targets, len(info["methods"]), -1) / 65535
        curves = np.frombuffer(data.get("curves", b""), np.float32)
        curves = curves.reshape(targets, len(info["methods"]), -1) if curves.size else None
        numbers = {"info": info, "maps": maps, "curves": curves}
        if data.get("polynomials"):
            codes = np.frombuffer(data["polynomials"], np.uint16).reshape(1 + 2 * targets, 2 * layers + 4, -1)
            scales = np.frombuffer(data["scales"], np.float32).reshape(1 + 2 * targets, -1, 1)
            return {**numbers, "polynomials": codes * scales.astype(np.float64)}
        codes = np.frombuffer(zlib.decompress(data["attention"]), np.uint8).reshape(layers, heads, n, n)
        attention = packing.dequantise(codes.cumsum(2, dtype=np.uint8))
        weights = np.frombuffer(data["weights"], np.float32).reshape(targets, 2, layers, heads)
        readout = torch.from_numpy(np.frombuffer(data["readout"], np.float32).copy())
        return {**numbers, "attention": attention, "weights": weights, "readout": readout}

    def weights(self, norm):
        photo = self.photos[self.settings["photo"]]
        layers, heads, _ = photo["info"]["shape"]
        if explorer.NORMS[norm] is None:
            return [torch.full((1, heads), 1 / heads)] * layers
        return [torch.from_numpy(w[None].copy()) for w in photo["weights"][self.settings["target"], norm]]

    def map(self, **changes):
        """The map (R·C,) after changing these settings for good."""
        self.settings.update(changes)
        return self._map(self.settings["norm"])

    def evenly(self):
        return self._map(2)

    def _map(self, norm):
        s, photo = self.settings, self.photos[self.settings["photo"]]
        if "polynomials" in photo:
            return self.at(norm, s["variant"], s["alpha"], s["target"])
        attentions = [torch.from_numpy(a[None]) for a in photo["attention"]]
        muted = [tuple(p) for p in s["muted"]]
        scores = packing.muted_rollout(
            attentions, self.weights(norm), photo["readout"], s["alpha"], VARIANTS[s["variant"]], s["layers"], muted
        )
        rows, columns = photo["info"]["grid"]
        return minmax(scores[:, -rows * columns :])[0].numpy()

    def at(self, norm, variant, alpha, target):
        """The map of a light photo: its polynomial in α, lowest power first."""
        photo = self.photos[self.settings["photo"]]
        depth = photo["info"]["shape"][0]
        first, last = [(0, 2), (2, depth + 3), (depth + 3, 2 * depth + 4)][variant]
        powers = photo["polynomials"][0 if norm == 2 else 1 + 2 * target + norm, first:last]
        return minmax(torch.from_numpy(np.polynomial.polynomial.polyval(alpha, powers))[None])[0].numpy()

    def look(self, layer, query):
        """Where a patch (or, at −1, the classifier) looks in a layer counted from 1."""
        photo, norm = self.photos[self.settings["photo"]], self.settings["norm"]
        fused = (self.weights(norm)[layer - 1][0, :, None, None].numpy() * photo["attention"][layer - 1]).sum(0)
        rows, columns = photo["info"]["grid"]
        row = photo["readout"].numpy() @ fused if query < 0 else fused[-rows * columns + query]
        return minmax(torch.from_numpy(row[None, -rows * columns :]))[0].numpy()

    def method(self, index):
        return self.photos[self.settings["photo"]]["maps"][self.settings["target"], index]


def checksum(values):
    k = np.arange(1, len(values) + 1)
    return float((values * k).sum() / k.sum())
