"""The wheel, in an environment that has the dependencies and no copy of the project: what a `pip install` gives."""

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from gmar_utils.teaching import samples

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools, which builds the wheel, is not installed")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-CONTENT"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "gmar_utils", copy / "gmar_utils", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, copy]
    subprocess.run([*map(str, command)], check=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """run(program, *arguments) in an environment with the wheel in it; packages of this one are found, its project not.

    A path in a .pth file is only looked into: the .pth files beside those packages, such as that of `pip install -e .`,
    do nothing there.
    """
    place = tmp_path_factory.mktemp("environment")
    venv.create(place / "env", with_pip=False)
    python = place / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(pip, check=True)
    (inside,) = (place / "env").rglob("site-packages")
    (inside / "dependencies.pth").write_text("\n".join(p for p in site.getsitepackages() if Path(p).exists()))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(program, *arguments):
        command = [str(python.parent / program), *arguments]
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, env=environment | {"HF_HUB_OFFLINE": "1"}
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.place, run.inside = place, inside
    return run


def test_holds_what_it_needs_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {n.split("/")[0] for n in names}
    assert folders == {"gmar_utils", next(f for f in folders if f.endswith(".dist-info"))}
    kept = {p.relative_to(ROOT).as_posix() for p in (ROOT / "gmar_utils").rglob("*") if p.is_file()}
    kept = {n for n in kept if "__pycache__" not in n}
    assert kept <= set(names), "add to package-data in pyproject.toml"
    assert any(n.endswith("LICENSE") for n in names)


def test_is_imported_from_where_it_was_installed(installed):
    shown = installed("python", "-c", "import gmar_utils; print(gmar_utils.__file__, gmar_utils.__version__)")
    assert Path(shown.split()[0]).is_relative_to(installed.inside)
    installed("python", "-c", "from gmar_utils.teaching import checks, diagram, samples")


def test_explains_a_photo(installed):
    samples.photo("cat").save(installed.place / "cat.png")
    installed("gmar", "explain", "cat.png", "--out", "out")
    made = {p.suffix for p in (installed.place / "out").iterdir()}
    assert {".png", ".npy", ".csv"} <= made
