"""The audit of the locks, by the real pip-audit, against an advisory service of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCK = f"arq==0.28.0 --hash=sha256:{64 * 'a'}\nredis==5.3.1 --hash=sha256:{64 * 'b'}\n"
ADVISORY = {
    "id": "TEST-2026-1",
    "summary": "It is but a test.",
    "affected": [
        {
            "package": {"name": "redis", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "5.3.2"}]}],
        }
    ],
}


class Service(ThreadingHTTPServer):
    """Answers as an OSV service does that knows of what is in ``vulnerable`` alone."""

    vulnerable = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/query"


class Query(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = query["package"]["name"] == self.server.vulnerable
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"vulns": [ADVISORY]} if known else {}).encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(("127.0.0.1", 0), Query) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def audit(folder: Path, url: str, *options: str, lock: str = LOCK) -> subprocess.CompletedProcess[str]:
    """Audit a lock, asking nobody but this service."""
    (folder / "lock.txt").write_text(lock)
    nowhere = {"HTTP_PROXY": "http://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["python3", "-m", "ops.audit", str(folder / "lock.txt"), f"--cache-dir={folder / 'cache'}", *options],
        cwd=ROOT,
        env={"PATH": path, "HOME": str(folder), "PIP_AUDIT_OSV_URL": url} | nowhere,
        capture_output=True,
        text=True,
    )


def test_what_is_vulnerable_is_named_and_fails(service: Service, tmp_path: Path) -> None:
    service.vulnerable = "redis"
    done = audit(tmp_path, service.url)
    assert (done.returncode, done.stdout) == (1, "FAIL  pip-audit\nredis 5.3.1: TEST-2026-1, fixed in 5.3.2\n")
    done = audit(tmp_path, service.url, "--ignore-vuln=TEST-2026-1")
    assert (done.returncode, done.stdout) == (0, "ok    pip-audit\n")


def test_nothing_known_is_well(service: Service, tmp_path: Path) -> None:
    done = audit(tmp_path, service.url)
    assert (done.returncode, done.stdout) == (0, "ok    pip-audit\n")


def test_nobody_to_ask_is_not_called_well(tmp_path: Path) -> None:
    done = audit(tmp_path, "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (0, "skip  pip-audit skipped: no advisory service answers\n")


def test_a_lock_without_hashes_fails(tmp_path: Path) -> None:
    done = audit(tmp_path, "http://127.0.0.1:1", lock="arq==0.28.0\n")
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL  pip-audit\n")
    assert "arq" in done.stdout
