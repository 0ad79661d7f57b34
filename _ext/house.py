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

#: From the ground up, each room with its place in the picture. A room may import rooms of the floors below its own, and
#: none beside it.
FLOORS = (
    {"capture": -0.5, "photo": 0.5},
    {"metrics": -1.0, "methods": 0.0, "memory": 1.3, "prompts": 2.3},
    {"viz": 0.0, "checkpoint": 1.0, "files": 2.0},
    {"explanation": 0.2},
    {"model": 0.7, "data": -2.2},
    {"evaluation": -1.2},
    {"training": -0.4, "explorer": 0.6, "export": 1.6},
    {"trustcard": 1.1},
    {"cli": 0.1},
    {"teaching": -2.0},
)
SIGNS = {
    "photo": "to pixels, and back",
    "data": "pictures to judge with",
    "files": "whole, or not written",
    "capture": "a pass, and its attention",
    "methods": "a trace becomes a map",
    "memory": "does it fit?",
    "prompts": "asked in words",
    "metrics": "how good is a map?",
    "viz": "pictures",
    "checkpoint": "weights and words",
    "explanation": "class, probability, map",
    "model": "explain, predict",
    "evaluation": "tables with intervals",
    "training": "train a ViT to explain",
    "explorer": "sliders",
    "export": "one file that explains",
    "trustcard": "a model's trust card",
    "cli": "gmar explain, …",
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


def needed(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The arrows that no chain of others implies."""
    below = {a: {y for x, y in edges if x == a} for a, _ in edges}

    def reaches(a, b):
        return b in below.get(a, ()) or any(reaches(middle, b) for middle in below.get(a, ()))

    return [(a, b) for a, b in edges if not any(reaches(middle, b) for middle in below[a] - {b})]


def draw(out: Path = PICTURE) -> None:
    """The house: a row for each floor, an arrow for each import that no chain of others implies."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    plt.rcParams.update({"svg.hashsalt": "house", "svg.fonttype": "none", "font.family": "sans-serif"})
    there, width, high = set(rooms()), 0.9, 0.52
    floors = [floor for floor in FLOORS if there & set(floor)]
    place = {room: (x, y) for y, floor in enumerate(floors) for room, x in floor.items() if room in there}
    figure, ax = plt.subplots(figsize=(9, 0.72 * len(floors) + 0.2))
    for room, (x, y) in place.items():
        look = {"facecolor": "#F7F7F5", "edgecolor": "#555555", "linewidth": 0.9, "zorder": 3}
        ax.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - high / 2), width, high, boxstyle="round,pad=0,rounding_size=0.05", **look
            )
        )
        ax.text(x, y + 0.09, room, ha="center", va="center", fontsize=10, fontweight="bold", color="#222222", zorder=4)
        ax.text(x, y - 0.12, SIGNS[room], ha="center", va="center", fontsize=6.8, color="#444444", zorder=4)
    style = {"arrowstyle": "-|>", "color": "#0072B2", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
    for a, b in needed(arrows()):
        (xa, ya), (xb, yb) = place[a], place[b]
        ax.annotate("", (xb, yb + high / 2), (xa, ya - high / 2), arrowprops=style, zorder=2)
    places = [x for x, _ in place.values()]
    ax.set(xlim=(min(places) - 0.5, max(places) + 0.5), ylim=(-0.4, len(floors) - 0.6))
    ax.set_axis_off()
    figure.savefig(out, bbox_inches="tight", metadata={"Description": plan(), "Date": None, "Creator": None})
    plt.close(figure)


if __name__ == "__main__":
    draw()
    print(PICTURE.relative_to(ROOT))
