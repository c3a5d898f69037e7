"""The report's page in a real browser."""

import functools
import http.server
import pathlib
import shutil
import subprocess
import threading

import pytest

from tests.report_samples import SAMPLES, Page, digits
from tfopt.report import (
    words,
)

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--dump-dom",
]


def _browse(site: pathlib.Path, scratch: pathlib.Path) -> tuple[str, list[str], str]:
    """The document as Chromium shows report.html, the paths it asked the server for, and its network log."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *arguments):
            asked.append(self.path)

        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        log = scratch / "net.json"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        command += [f"http://127.0.0.1:{server.server_port}/report.html"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    return shown, asked, log.read_text(encoding="utf-8")


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")


@needs_chromium
@pytest.mark.parametrize(("name", "articles"), [("digits", 4), ("weird", 3)])
def test_browser_shows_the_page_and_asks_for_nothing_else(name, articles, tmp_path):
    report = SAMPLES[name]()
    report.write(tmp_path / "site")
    shown, asked, log = _browse(tmp_path / "site", tmp_path)
    assert asked == ["/report.html"]
    assert '"http://a.b' not in log
    found = Page(shown)
    assert not {"script", "img"} & set(found.tags)
    assert (found.tags.count("svg"), found.tags.count("article")) == (4, articles)
    assert report.recipe in found.texts
    assert words.summary(report.chain) in found.texts


@needs_chromium
def test_browser_would_load_nothing_even_if_the_page_asked(tmp_path):
    path = digits().write(tmp_path / "site")["html"]
    foreign = '<img src="/same.png"><img src="http://a.b/other.png"><script>document.title = "ran"</script></main>'
    path.write_text(path.read_text(encoding="utf-8").replace("</main>", foreign), encoding="utf-8")
    shown, asked, _ = _browse(tmp_path / "site", tmp_path)
    assert asked == ["/report.html"]
    assert "<title>digits_int8 | tfopt report</title>" in shown
