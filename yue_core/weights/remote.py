"""Where files come from: the Hugging Face hub, or a mirror with the same addresses; bytes from any offset."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import httpx
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from yue_core.errors import WeightsError
from yue_core.weights.files import WeightFile

TIMEOUT = 30.0  # seconds without a byte
CHUNK_BYTES = 1 << 20
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses worth another attempt
MAX_WAIT = 60.0  # seconds that a server may ask us to wait


class Transient(Exception):
    """An attempt failed in a way that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = min(wait, MAX_WAIT)


class Absent(WeightsError):
    """The server does not have the file."""


@dataclass(frozen=True)
class Offer:
    """What a server says about a file."""

    location: str  # where the bytes are
    bytes: int | None
    sha256: str | None  # of the LFS pointer
    git: str | None  # blob id of a file that is stored in git itself
    xet: tuple[str, str] | None  # hash in Xet storage, and where a token for it is to be had


def mirror() -> str | None:
    """The base URL that replaces the hub, if any: `YUE_WEIGHTS_URL`."""
    return os.environ.get("YUE_WEIGHTS_URL", "").rstrip("/") or None


def url_of(file: WeightFile) -> str:
    """Where a file is asked for; a mirror has every file under `<repo>/resolve/<revision>/<path>`."""
    if file.source == "github" and not mirror():
        return f"https://raw.githubusercontent.com/{file.repo}/{file.revision}/{file.path}"
    return hf_hub_url(file.repo, file.path, revision=file.revision, endpoint=mirror())


def _token(url: str) -> str | bool | None:
    """The hub's own token goes to the hub alone; a mirror may have one in `YUE_WEIGHTS_TOKEN`."""
    base = mirror()
    if base:
        return os.environ.get("YUE_WEIGHTS_TOKEN", False) if url.startswith(base) else False
    return None if url.startswith(constants.ENDPOINT) else False


def offer(file: WeightFile) -> Offer:
    """Ask the server for size, hash and location.

    Raises Transient for what may pass, and WeightsError when the server refuses or does not know the file.
    """
    url = url_of(file)
    try:
        found = get_hf_file_metadata(url, token=_token(url), timeout=TIMEOUT, endpoint=mirror())
    except HfHubHTTPError as error:
        raise _refusal(url, error.response.status_code, error.response.headers.get("Retry-After")) from error
    except httpx.TransportError as error:
        raise Transient(f"{url} cannot be reached ({error})") from error
    etag = (found.etag or "") if found.commit_hash else ""  # other servers' tags mean other things
    xet = found.xet_file_data
    hexadecimal = set(etag) <= set("0123456789abcdef")
    return Offer(
        location=found.location,
        bytes=found.size,
        sha256=etag if hexadecimal and len(etag) == 64 else None,
        git=etag if hexadecimal and len(etag) == 40 else None,
        xet=None if constants.HF_HUB_DISABLE_XET or not xet else (xet.file_hash, xet.refresh_route),
    )


def _refusal(url: str, status: int, retry_after: str | None) -> Exception:
    """The error for an HTTP status."""
    if status in TRANSIENT:
        wait = float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
        return Transient(f"{url} answered {status}", wait)
    if status == 404:
        return Absent(f"{url} does not exist (404); check YUE_WEIGHTS_URL, or update this checkout.")
    return WeightsError(f"{url} refused access ({status}); check YUE_WEIGHTS_TOKEN and YUE_WEIGHTS_URL.")


def open_at(found: Offer, start: int) -> tuple[int, Iterator[bytes]]:
    """Bytes from offset `start` on, and the offset they really begin at (0 where a server ignores ranges).

    The iterator raises Transient when the connection fails; it may also just end early.
    """
    if found.xet is not None:
        return start, _xet(*found.xet, found.bytes, start)
    headers = build_hf_headers(token=_token(found.location)) | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(found.location, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT, context=_certificates())
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 403:  # a signed address that ran out; the next offer has a new one
                raise Transient(f"{found.location.split('?')[0]} answered 403") from error
            if error.code == 416:  # our part is not a part of this file
                return open_at(found, 0)
            raise _refusal(found.location.split("?")[0], error.code, error.headers["Retry-After"]) from error
    except (OSError, http.client.HTTPException) as error:
        raise Transient(f"{found.location.split('?')[0]} cannot be reached ({error})") from error
    return (start if response.status == 206 else 0), _body(response)


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates that the hub's client uses as well."""
    return httpx.create_ssl_context()


def _body(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The rest of a response, in chunks."""
    with response:
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise Transient(f"the connection broke ({error})") from error
            if not chunk:
                return
            yield chunk


def _xet(file_hash: str, refresh: str, size: int | None, start: int) -> Iterator[bytes]:
    """The rest of a file in Xet storage, in order, so that it can be hashed on its way to the disk."""
    from hf_xet import XetFileInfo, XetSession  # type: ignore[import-untyped]

    try:
        group = XetSession().new_download_stream_group(
            token_refresh_url=refresh, token_refresh_headers=build_hf_headers(token=_token(refresh))
        )
        yield from group.download_stream(XetFileInfo(file_hash, size), start=start or None)
    except Exception as error:  # its errors are its own; the next attempt goes without it
        raise Transient(f"Xet storage failed ({error})") from error
