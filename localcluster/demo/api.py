"""The V2 API as a client sees it: requests, and a run's events as they come."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from localcluster.api import NO_PROXY
from localcluster.errors import ClusterError

ANSWER_SECONDS = 30
# More than twice what passes between two comments that keep a stream open.
SILENCE_SECONDS = 40
MOST_RETURNS = 5

Json = dict[str, Any]


class V2Api:
    """The API at a URL, for who has a key."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._opener = urllib.request.build_opener(NO_PROXY)

    def post(self, path: str, body: Mapping[str, object]) -> Json:
        """Return the answer to a POST.

        Raises:
            ClusterError: it is refused, or there is none.
        """
        return self._asked(path, json.dumps(body).encode())

    def get(self, path: str) -> Json:
        """Return the answer to a GET; errors as of `post`."""
        return self._asked(path, None)

    def events(self, path: str) -> Iterator[tuple[str, Json]]:
        """Follow a stream from its beginning to the event `done`; a stream that is cut is gone on with.

        Returns:
            Each event with its id.

        Raises:
            ClusterError: the stream is silent, or is cut again and again.
        """
        last = ""
        for _ in range(MOST_RETURNS):
            try:
                for entry_id, event in self._stream(path, last):
                    last = entry_id
                    yield last, event
                    if event.get("type") == "done":
                        return
            except TimeoutError:
                raise ClusterError(f"the stream {path} said nothing for {SILENCE_SECONDS} s") from None
            except (http.client.HTTPException, ConnectionError):
                continue  # cut in the middle, such as by a port-forward whose connection was lost
        raise ClusterError(f"the stream {path} was cut {MOST_RETURNS} times")

    def _stream(self, path: str, last: str) -> Iterator[tuple[str, Json]]:
        headers = self._headers | ({"Last-Event-ID": last} if last else {})
        entry_id = ""
        with self._open(urllib.request.Request(self._url + path, headers=headers), SILENCE_SECONDS) as stream:  # noqa: S310 - http
            for line in stream:
                field, _, value = line.decode().rstrip("\n").partition(": ")
                if field == "id":
                    entry_id = value
                elif field == "data":
                    yield entry_id, json.loads(value)

    def _asked(self, path: str, body: bytes | None) -> Json:
        request = urllib.request.Request(self._url + path, body, self._headers)  # noqa: S310 - http
        with self._open(request, ANSWER_SECONDS) as answer:
            found: Json = json.load(answer)
        return found

    def _open(self, request: urllib.request.Request, seconds: float) -> Any:
        try:
            return self._opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as refused:
            said = refused.read().decode(errors="replace")
            raise ClusterError(f"{request.get_method()} {request.selector}: {refused.code} {said}") from None
        except OSError as error:
            raise ClusterError(f"{request.get_method()} {request.selector}: {error}") from None
