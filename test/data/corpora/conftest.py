"""A server of files, from which corpora are downloaded."""

import functools
import http.server
import threading

import pytest


@pytest.fixture
def server(tmp_path):
    """Serve tmp_path, and return the URL."""
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
