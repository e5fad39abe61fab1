"""The documentation as a site: complete, whole, and loading nothing from elsewhere."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from pydantic import BaseModel

from documented import PROGRAMS, ROOT
from fedpdpo.v1 import federation_pb2, metrics_pb2, operator_pb2, payload_pb2, run_pb2, session_pb2
from processes import BIN

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CONTRACT = (federation_pb2, metrics_pb2, operator_pb2, payload_pb2, run_pb2, session_pb2)
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|object|embed)\b[^>]*?\b(?:src|data)=["']?([^"'\s>]+)"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*?\bhref=["']?([^"'\s>]+)"""
    r"""|@import\s+(?:url\()?["']?([^"')]+)|url\(["']?([^"')]+)""",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [str(BIN / "mkdocs"), "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_each_page_beside_the_code_is_in_the_navigation(site: Path) -> None:
    navigation = text_of(ROOT / "mkdocs.yml")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf": {page.name}$", navigation, re.MULTILINE), page
        assert (site / page.name).with_suffix(".html").exists()


def test_the_reference_names_every_call_message_and_field(site: Path) -> None:
    page = text_of(site / "reference" / "protocol.html")
    for module in CONTRACT:
        described = module.DESCRIPTOR
        for service in described.services_by_name.values():
            for method in service.methods:
                assert f'<h4 id="{method.name.lower()}">' in page
        for message in described.message_types_by_name.values():
            heading = f'<h3 id="{message.name.lower()}">'
            part = page.partition(heading)[2].partition("<h3")[0]
            assert part, heading
            for one in message.fields:
                assert f"<td>{one.number}</td>\n<td><code>{one.name}</code></td>" in part


def test_the_reference_marks_streams_and_tells_every_comment(site: Path) -> None:
    page = text_of(site / "reference" / "protocol.html")
    push = page.partition('<h4 id="pushdelta">')[2].partition("<h4")[0]
    assert "Takes stream of" in push
    assert "gives stream of" in push
    assert "<td></td>" not in page
    assert "What the server holds comes first" not in page  # a oneof's own comment has no field
    assert "Size of the whole payload in bytes; at least 8" in page


def settings(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, one in model.model_fields.items():
        inner = one.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings(inner, (*before, name))
        else:
            yield (*before, name)


def test_the_reference_names_every_setting_with_its_variable(site: Path) -> None:
    page = text_of(site / "reference" / "settings.html")
    for program, model in PROGRAMS.items():
        heading = f'<h2 id="{program.replace(" ", "-")}">'
        part = page.partition(heading)[2].partition("<h2")[0]
        assert part, heading
        prefix = str(model.model_config.get("env_prefix") or "")
        for path in settings(model):
            flag = ".".join(path).replace("_", "-")
            assert f"<code>--{flag}</code>" in part
            assert not prefix or f"<code>{prefix}{'__'.join(path).upper()}</code>" in part


def test_every_formula_is_mathml_without_a_command_left(site: Path) -> None:
    page = text_of(site / "method.html")
    source = text_of(ROOT / "docs" / "method.md")
    blocks = source.count("```math")
    inline = len(re.findall(r"\$[^$\n]+\$", re.sub(r"```.*?```", "", source, flags=re.DOTALL)))
    formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert len(formulas) >= blocks + inline > 80
    assert not [one for one in formulas if "\\" in one]
    without_code = re.sub(r"<(script|code)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert "$" not in without_code
    assert "arithmatex" not in page


def test_no_page_names_another_host_to_load_from(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(files) > 20
    found = {
        target
        for path in files
        for groups in LOADED.findall(text_of(path))
        for target in groups
        if re.match(r"(https?:)?//", target)
    }
    assert not found


@pytest.mark.skipif(not CHROMIUM, reason="needs Debian's chromium")
def test_a_browser_asks_no_other_host_for_any_page(site: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    asked: list[str] = []
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        sync_playwright() as playwright,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        for page in sorted(site.rglob("*.html")):
            tab.goto(here + str(page.relative_to(site)), wait_until="networkidle")
        browser.close()
        server.shutdown()
    assert len(asked) > 40
    assert not [url for url in asked if not url.startswith((here, "data:"))]
