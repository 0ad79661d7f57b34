"""One explanation: the map, the photo, the class and its probability, from one pass; how it is shown and kept."""

import base64
import html
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .capture.settling import once
from .files import atomic
from .photo import to_photo

SHOWN = 640  # pixels of the longer side, in a notebook


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What a model says of a photo, and where it looked for it.

    Attributes:
        map: (R, C) float32, one value a patch: in [0, 1], min–max; of a signed map in [−1, 1], 0 is neutral.
        photo: the picture as the model's kind of PIL image (of a model with neither 1 nor 3 channels: the first, grey).
        target: id of the class that is explained; of a contrast (a, b).
        label: its word.
        probability: of the class (of a contrast: of a); None for a regression head, which has none.
        method: its key in METHODS, or the name of the caller's own function.
        options: of the method, as they were given.
        signed: whether values below 0 speak against the class.
    """

    map: torch.Tensor
    photo: Image.Image
    target: int | tuple[int, int]
    label: str
    probability: float | None
    method: str
    options: dict
    signed: bool
    _at_input: torch.Tensor  # the map at the size of the model's input (h, w)
    _processor: object

    @once
    def on_photo(self) -> torch.Tensor:
        """The map on the photo's own pixels (height, width), float32; NaN outside of what the model saw.

        Raises:
            ValueError: When it is not known where the processor looks in a photo.
        """
        return to_photo(self._at_input[None], [self.photo.size[::-1]], self._processor)[0]

    @property
    def heading(self) -> str:
        """The class and its probability: 'tabby 62 %'."""
        return self.label + ("" if self.probability is None else f" {100 * self.probability:.0f} %")

    @property
    def alt(self) -> str:
        """What the picture shows, for a reader who cannot see it."""
        return self._words.alt

    @property
    def caption(self) -> str:
        """A sentence for the methods section of a report, with the citation key of the book's bibliography."""
        return self._words.sentence

    @once
    def _words(self):
        from . import viz

        about = {"label": self.label, "probability": self.probability} | self.options
        return viz.caption(self.on_photo, self.method, **about)

    def picture(self) -> Image.Image:
        """The photo in grey with the map above it, at the photo's size."""
        from . import viz

        return viz.blend(self.photo, self.on_photo, signed=self.signed)

    def show(self) -> None:
        """Draw the photo and, beside it, the map on it, under the class and its probability."""
        import matplotlib.pyplot as plt

        from . import viz

        maps = {viz.title_of(self.method): [self.on_photo]}
        viz.grid([self.photo], maps, [self.heading], width=3.2, signed=self.signed)
        plt.show()

    def save(self, path: str | os.PathLike) -> None:
        """Write the picture (".png", or another format of Pillow) or the map on the photo's pixels (".npy", float32).

        Raises:
            ValueError: For an ending that is neither.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind != ".npy" and kind not in Image.registered_extensions():
            raise ValueError(f"save writes a picture such as 'why.png', or the map as 'why.npy'; got {str(path)!r}.")
        with atomic(path) as temporary:
            np.save(temporary, self.on_photo.numpy()) if kind == ".npy" else self.picture().save(temporary)

    def __repr__(self) -> str:
        rows, columns = self.map.shape
        return f"Explanation({self.heading}, target={self.target}, method={self.method!r}, {rows}×{columns} patches)"

    def _repr_png_(self) -> bytes:
        picture, buffer = self.picture(), io.BytesIO()
        picture.thumbnail((SHOWN, SHOWN))
        picture.save(buffer, "png")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        """A picture with alt text: a notebook shows this one, and the bare PNG where there is no HTML."""
        data = base64.b64encode(self._repr_png_()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(self.alt)}">'
        return f"<figure>{image}<figcaption>{html.escape(self.heading)}</figcaption></figure>"
