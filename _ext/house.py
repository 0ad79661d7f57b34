"""How the code is laid out, read from its imports: rooms on floors, and a picture of them.

A room is a module or a folder directly in `gmar_utils`. Each stands on a floor of `FLOORS`; what it may import lies
on a lower floor. `python _ext/house.py` draws the picture of the page 'How the code is laid out'.
"""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gmar_utils"
PICTURE = ROOT / "book/assets/house.svg"

#: From the ground up. A room may import rooms of the floors below its own, and none beside it.
FLOORS = (
    ("photo", "data", "files"),
    ("capture",),
    ("methods", "memory"),
    ("metrics", "viz", "checkpoint"),
    ("explanation",),
    ("model",),
    ("evaluation",),
    ("training", "explorer", "export", "trust"),
    ("cli",),
    ("teaching",),
)
SIGNS = {
    "photo": "reads a photo; maps back onto it",
    "data": "Tiny-ImageNet, VOC, shapes",
    "files": "whole, or not written",
    "capture": "one pass, seen through its attention",
    "methods": "a trace becomes a map",
    "memory": "does it fit?",
    "metrics": "how good is a map?",
    "viz": "pictures, tables of colours",
    "checkpoint": "weights, words, processor",
    "explanation": "class, probability, map",
    "model": "load a ViT; explain, predict",
    "evaluation": "methods × metrics, with intervals",
    "training": "train a ViT to explain",
    "explorer": "sliders",
    "export": "one file that explains",
    "trust": "a model's trust card",
    "cli": "gmar explain, evaluate, …",
    "teaching": "what only the book uses",
}


def rooms() -> list[str]:
    """What lies directly in the package, its door (`__init__`, `__main__`) left out."""
    inside = [p for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    return sorted(p.stem for p in inside if not p.stem.startswith("__"))


def imports(path: Path) -> set[str]:
    """The rooms that a file imports; the package's own names ("trace", "__version__") stand for themselves."""
    found = set()
    package = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            modules = [f"{module}.{alias.name}" for alias in node.names] if module == PACKAGE.name else [module]
        else:
            continue
        parts = [m.split(".") for m in modules]
        found |= {p[1] for p in parts if p[0] == PACKAGE.name and len(p) > 1}
    return found


def arrows() -> list[tuple[str, str]]:
    """(room, room that it imports), once each."""
    known, found = set(rooms()), set()
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found |= {(room, other) for other in imports(path) & known if room in known and room != other}
    return sorted(found)


def plan() -> str:
    """Rooms and arrows as text; the picture carries it, so that a test can tell whether it is current."""
    return json.dumps({"rooms": rooms(), "arrows": arrows()})


def draw(out: Path = PICTURE) -> None:
    """The house: a row for each floor, an arrow for each import that no chain of others implies."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    plt.rcParams.update({"svg.hashsalt": "house", "svg.fonttype": "none", "font.family": "sans-serif"})
    there, edges = set(rooms()), set(arrows())
    floors = [[room for room in floor if room in there] for floor in FLOORS]
    floors = [floor for floor in floors if floor]
    width, step = 2.9, 1.0
    place = {
        room: ((k - (len(floor) - 1) / 2) * (width + 0.35), y * step)
        for y, floor in enumerate(floors)
        for k, room in enumerate(floor)
    }
    below = {room: {b for a, b in edges if a == room} for room in there}
    figure, ax = plt.subplots(figsize=(8.6, 0.78 * len(floors) + 0.2))
    for room, (x, y) in place.items():
        look = {"facecolor": "#F7F7F5", "edgecolor": "#555555", "linewidth": 0.9, "zorder": 3}
        corner, round_ = (x - width / 2, y - 0.26), "round,pad=0,rounding_size=0.1"
        ax.add_patch(FancyBboxPatch(corner, width, 0.52, boxstyle=round_, **look))
        ax.text(x, y + 0.09, room, ha="center", va="center", fontsize=10, fontweight="bold", color="#222222", zorder=4)
        ax.text(x, y - 0.12, SIGNS[room], ha="center", va="center", fontsize=7.2, color="#444444", zorder=4)
    for a, b in edges:
        implied = any(b in below[middle] for middle in below[a])
        (xa, ya), (xb, yb) = place[a], place[b]
        if not implied:
            style = {"arrowstyle": "-|>", "color": "#0072B2", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (xb, yb + 0.26), (xa, ya - 0.26), arrowprops=style, zorder=2)
    reach = max(abs(x) for x, _ in place.values()) + width / 2 + 0.1
    ax.set(xlim=(-reach, reach), ylim=(-0.4, (len(floors) - 1) * step + 0.4))
    ax.set_axis_off()
    figure.savefig(out, bbox_inches="tight", metadata={"Description": plan(), "Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    draw()
    print(PICTURE.relative_to(ROOT))
