"""Download a file whose checksum is known. It appears under its name only once it is complete and correct."""

from __future__ import annotations

import hashlib
import http.client
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from metakm.io.files import atomic_write

SCHEMES = ("https",)
TIMEOUT = 30.0  # seconds of silence
BLOCK = 1 << 16


def download(url: str, path: Path, md5: str, limit: int) -> None:
    """Fetch `url` to `path`.

    Args:
        md5: hex digits, as published with the file; it detects damage and mistakes. https protects against forgery.
        limit: bytes after which to give up.

    Raises:
        OSError: no https, no connection, silence for `TIMEOUT` seconds, a server error, or a file that is truncated,
            too long or has another checksum. `path` then stays as it was.
    """
    _require_scheme(url)
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(url, timeout=TIMEOUT) as response, atomic_write(path) as file:
            digest = hashlib.md5(usedforsecurity=False)
            size = 0
            while block := response.read(BLOCK):
                size += len(block)
                if size > limit:
                    raise OSError(f"Expected at most {limit} bytes from {url}, got more")
                digest.update(block)
                file.write(block)
            _check(response, url, size, digest.hexdigest() == md5)
    except http.client.HTTPException as error:
        raise OSError(f"Expected a file from {url}, got {error!r}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        """Refuse a redirect from https to anything else."""
        _require_scheme(arguments[-1])
        return super().redirect_request(*arguments)


def _check(response: http.client.HTTPResponse, url: str, size: int, right: bool) -> None:
    announced = response.headers.get("Content-Length", "")
    if announced.isdigit() and size < int(announced):
        raise OSError(f"Expected {announced} bytes from {url}, got {size}: the connection was lost")
    if not right:
        kind = response.headers.get_content_type()
        page = ", a web page: is there a proxy or a login page in between?" if kind == "text/html" else ""
        raise OSError(
            f"Expected the file with the published checksum from {url}, got {size} bytes with another checksum{page}"
        )


def _require_scheme(url: str) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise OSError(f"Expected a download over {' or '.join(SCHEMES)}, got {url}")
