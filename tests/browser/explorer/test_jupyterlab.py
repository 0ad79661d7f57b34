"""The same widget in JupyterLab, with a kernel."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from gmar_utils import explorer

from ..conftest import missing
from .conftest import MODEL
from .expected import checksum


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.slow
def test_live_in_jupyterlab(browser, tmp_path):
    """The same widget with a kernel: the view recomputes, and the kernel's traits follow."""
    if importlib.util.find_spec("jupyterlab") is None:
        missing("there is no JupyterLab: pip install -r requirements.txt")
    source = MODEL + 'ui = explorer.explore(vit, photos, show=("map", "heads"))\nui'
    cells = [source, "print('KERNEL', ui.view.arguments(), ui.view.photo)"]
    notebook = {
        "cells": [
            {"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [], "source": c}
            for i, c in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (tmp_path / "live.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    root = str(Path(__file__).parents[3])
    home = {"JUPYTER_CONFIG_DIR": f"{tmp_path}/config", "JUPYTER_RUNTIME_DIR": f"{tmp_path}/run", "PYTHONPATH": root}
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={tmp_path}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    log = (tmp_path / "log").open("w")
    lab = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **home}, stdout=log, stderr=log)
    try:
        base = f"http://127.0.0.1:{port}"
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{base}/api")
                break
            time.sleep(0.5)
        context = browser.new_context(viewport={"width": 1300, "height": 1200})
        page = context.new_page()
        off_site, here = [], (base, "data:", "blob:", base.replace("http", "ws"))
        errors = []
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(here) else off_site.append(r.url))
        page.goto(f"{base}/lab/tree/live.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=120_000)

        def run(number):
            """Press until the prompt says that the cell runs: for its first seconds JupyterLab hears no shortcut."""
            prompt = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").nth(number)
            for _ in range(60):
                prompt.click()
                page.keyboard.press("Control+Enter")
                page.wait_for_timeout(500)
                if prompt.inner_text().strip() != "[ ]:":
                    return
            pytest.fail("JupyterLab does not run the cell")

        run(0)
        view = page.locator(".gmar[data-checksum]")
        view.wait_for(timeout=180_000)
        explorer_box = page.locator(".gmar-explorer")
        before = view.get_attribute("data-checksum")
        explorer_box.get_by_role("combobox", name="variant").select_option(label="report")
        explorer_box.get_by_role("slider", name="α", exact=True).focus()
        for _ in range(5):
            page.keyboard.press("ArrowRight")
        explorer_box.get_by_role("combobox", name="photo").select_option(index=1)
        explorer_box.get_by_role("combobox", name="head weights").select_option(label="L2 norm")
        view.locator('[data-head="4,2"]').click()
        handle = explorer_box.get_by_role("slider", name="layers, first")
        handle.scroll_into_view_if_needed()
        at = handle.bounding_box()
        page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
        page.mouse.down()
        page.mouse.move(at["x"] + at["width"] / 2 + 80, at["y"] + at["height"] / 2, steps=8)
        page.mouse.up()
        page.wait_for_timeout(1500)
        shown = float(view.get_attribute("data-checksum"))
        assert shown != float(before)
        run(1)
        output = page.locator(".jp-OutputArea-output pre", has_text="KERNEL")
        output.wait_for(timeout=60_000)
        words = output.inner_text()
        assert "'alpha': 1.25" in words and "'variant': 'report'" in words and "'norm': 'l2'" in words
        assert "'layers': (2, 4)" in words and "'muted': [(4, 2)]" in words
        assert words.strip().endswith("1")
        assert not off_site
        assert not errors
        space = {}
        exec(MODEL, space)
        arguments = eval(words.strip().removeprefix("KERNEL").strip().rsplit(" ", 1)[0])
        exact = explorer.state_map(space["vit"], space["photos"]["other waves"], **arguments)
        assert shown == pytest.approx(checksum(exact.flatten().numpy()), abs=0.01)  # the page's against exact attention
        context.close()
    finally:
        lab.terminate()
        lab.wait(timeout=30)
        log.close()
