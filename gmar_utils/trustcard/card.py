"""The card: lights, a recommendation, and the page that holds them."""

import html
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..capture.settling import once
from ..files import atomic
from .choice import Recommendation
from .lights import Light


@dataclass(frozen=True, eq=False, repr=False)
class TrustCard:
    """Which explanation of a model may be shown, from the reader's own photos.

    Attributes:
        vit, photos, methods: what was judged.
        results: per photo what was measured (`making._Run.photo`).
        lights: of each method and check.
        model: lights of the model itself.
        recommendation: what to show, what not, and what cannot be told.
        problems: sentences: photos, labels, masks and methods that were left out, and why.
        provenance: what made it.
        book: address of the book, for links; "" for relative ones.
    """

    vit: object
    photos: list
    results: list[dict]
    methods: dict
    lights: list[Light]
    model: list[Light]
    recommendation: Recommendation
    problems: list[str]
    provenance: dict
    book: str = ""

    def frame(self) -> pd.DataFrame:
        """The lights, one row each, those of the model first (their method is "")."""
        columns = ["check", "method", "colour", "value", "low", "high", "photos", "p", "sentence", "needed"]
        return pd.DataFrame([{c: getattr(x, c) for c in columns} for x in self.model + self.lights], columns=columns)

    @once
    def html(self) -> str:
        """The page: one file, with pictures, style and program inside."""
        from .page import as_html

        return as_html(self)

    def save(self, path: str | os.PathLike) -> None:
        """Write the page. ValueError for a name that does not end in .html or .htm."""
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"A card is saved as a page such as 'trust.html', got {str(path)!r}.")
        with atomic(path) as temporary:
            temporary.write_text(self.html, encoding="utf-8")

    def __repr__(self) -> str:
        return f"TrustCard({len(self.photos)} photos): {self.recommendation.sentence}"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style and the notebook's do not meet."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="Trust card" '
            'style="width:100%;height:48rem;border:1px solid #8888"></iframe>'
        )
