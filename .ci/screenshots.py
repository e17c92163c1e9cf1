"""Screenshots of the explorer before and after a slider is moved: Voila serves a notebook, headless Chromium shows it.

    python .ci/screenshots.py FOLDER

Needs the extra ``gui-jupyter``, voila, ipykernel, and a Chromium or Chrome on the PATH. Ends with 1 where the two
screenshots, or the two pictures in them, are alike.
"""

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from urllib.request import urlopen

from tornado.websocket import websocket_connect

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
QUIET += ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"]
SECONDS = 240  # for the kernel to start, and to compile
CELL = """\
import hyperspy_fusion
maps, haadf = hyperspy_fusion.data.core_shell((160, 160)).signals()
fused = hyperspy_fusion.fuse(maps, haadf, method={method!r}, show_progressbar=False)
explorer = fused.explore()"""
PICTURE = "(document.querySelector('img.widget-image') || {src: ''}).src"
HANDLE = """(() => {
    const label = [...document.querySelectorAll('label')].find(one => one.textContent.includes('%s'));
    const box = label.parentElement.querySelector('.noUi-handle').getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""


class Page:
    """A page of the browser, by the Chrome DevTools protocol."""

    def __init__(self, socket):
        self._socket, self._numbers = socket, count(1)

    async def call(self, method, **parameters):
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(await self._socket.read_message())
            if answer.get("id") == number:
                return answer["result"]

    async def value(self, script):
        found = (await self.call("Runtime.evaluate", expression=script, returnByValue=True))["result"]
        return found.get("value")

    async def until(self, is_there):
        for _ in range(2 * SECONDS):
            if is_there(found := await self.value(PICTURE)):
                return found
            await asyncio.sleep(0.5)
        raise TimeoutError(await self.value("document.body.innerText"))

    async def drag(self, start, by):
        x, y = start
        steps = [("mousePressed", x), *(("mouseMoved", x + by * k / 5) for k in range(1, 6)), ("mouseReleased", x + by)]
        for kind, at in steps:
            await self.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", clickCount=1)

    async def screenshot(self, path):
        await asyncio.sleep(1)  # what has arrived is painted
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


async def capture(address, devtools, folder, name, slider):
    """Before and after a slider is moved."""
    request = f"http://127.0.0.1:{devtools}/json/list"
    target = next(one for one in json.load(urlopen(request)) if one["type"] == "page")
    page = Page(await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=2**27))
    await page.call("Emulation.setDeviceMetricsOverride", width=1340, height=800, deviceScaleFactor=1, mobile=False)
    await page.call("Page.navigate", url=address)
    before, after = (folder / f"{name}_{when}.png" for when in ("before", "after"))
    picture = await page.until(bool)
    await page.screenshot(before)
    await page.drag(await page.value(HANDLE % slider), 40)
    await page.until(lambda found: found not in ("", picture))
    await page.screenshot(after)
    if before.read_bytes() == after.read_bytes():
        raise SystemExit(f"{before} and {after} are alike: the slider {slider} changed nothing.")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def answering(ask, process):
    """What ``ask`` returns once it does not raise."""
    for _ in range(2 * SECONDS):
        try:
            return ask()
        except OSError:
            if process.poll() is not None:
                raise
            await asyncio.sleep(0.5)
    raise TimeoutError(f"{process.args[0]} does not answer")


async def screenshots(browser, work, folder, method, slider):
    """Serve a notebook and capture it."""
    cell = {"cell_type": "code", "source": CELL.format(method=method), "metadata": {}, "outputs": []}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [cell | {"execution_count": None}], "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}
    path, port, profile = work / f"{method}.ipynb", free_port(), work / f"{method}-browser"
    path.write_text(json.dumps(notebook))
    serve = [sys.executable, "-m", "voila", str(path), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"]
    show = [browser, *QUIET, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
    running = []
    try:
        with (work / "log").open("w") as log:
            running += [subprocess.Popen(command, stdout=log, stderr=log) for command in (serve, show)]
        await answering(lambda: socket.create_connection(("127.0.0.1", port)).close(), running[0])
        opened = await answering(lambda: (profile / "DevToolsActivePort").read_text(), running[1])
        await capture(f"http://127.0.0.1:{port}/", opened.split()[0], folder, method, slider)
    finally:
        for process in running:
            process.terminate()
            process.wait(20)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"No browser was found on the PATH, of {', '.join(BROWSERS)}: install one.")
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for method, slider in (("published", "lambda_chem"), ("calibrated", "lambda_reg")):
            asyncio.run(screenshots(browser, Path(work), folder, method, slider))
    print("\n".join(sorted(str(path) for path in folder.glob("*.png"))))


if __name__ == "__main__":
    main()
