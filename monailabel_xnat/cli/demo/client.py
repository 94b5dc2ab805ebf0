"""What a viewer asks of MONAI Label, over its REST API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

MODEL = "organs"
TIMEOUT = 300.0
POLL_SECONDS = 2.0


class Client:
    """A client of one MONAI Label server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._http = requests.Session()

    def info(self) -> dict[str, Any]:
        """Ask what the server offers."""
        return self._json("GET", "/info/")

    def counts(self) -> dict[str, Any]:
        """Count images and labels."""
        return self._json("GET", "/datastore/")

    def everything(self) -> dict[str, Any]:
        """List images and labels with all that is known about them."""
        return self._json("GET", "/datastore/", params={"output": "all"})

    def image_info(self, image: str) -> dict[str, Any]:
        """Ask what is known about one image."""
        return self._json("GET", "/datastore/image/info", params={"image": image})

    def next_sample(self) -> dict[str, Any]:
        """Ask which image to annotate next."""
        return self._json("POST", "/activelearning/random", json={"client_id": "demo"})

    def infer(self, image: str, target: Path) -> Path:
        """Segment an image and store the label map."""
        form = {"params": json.dumps({"result_extension": ".nii.gz", "result_dtype": "uint8"})}
        query = {"image": image, "output": "image"}
        response = self._request("POST", f"/infer/{MODEL}", params=query, data=form)
        target.write_bytes(response.content)
        return target

    def save_label(self, image: str, label: Path, info: dict[str, Any]) -> None:
        """Submit a corrected label, which counts as final."""
        with label.open("rb") as stream:
            files = {"label": (label.name, stream, "application/octet-stream")}
            self._request(
                "PUT", "/datastore/label", params={"image": image}, data={"params": json.dumps(info)}, files=files
            )

    def train(self, max_epochs: int) -> Iterator[str]:
        """Train, and yield what the training says, line by line, while it goes on."""
        self._request("POST", f"/train/{MODEL}", json={"max_epochs": max_epochs})
        seen: list[str] = []
        while True:
            status = self._json("GET", "/train/")
            lines = status.get("details") or []
            yield from _new_lines(lines, seen)
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                break
            time.sleep(POLL_SECONDS)
        if status["status"] != "DONE":
            raise RuntimeError("the training failed:\n" + "\n".join(lines))

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._request(method, path, **options).json()
        return answer

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        response = self._http.request(method, self._url + path, timeout=TIMEOUT, **options)
        if not response.ok:
            raise RuntimeError(f"{method} {path} answered {response.status_code}: {response.text[:500]}")
        return response


def _new_lines(lines: list[str], seen: list[str]) -> Iterator[str]:
    """Yield the lines that were not there the last time. MONAI Label shows the last twenty."""
    known = set(seen)
    for line in lines:
        if line not in known:
            yield line
    seen[:] = [*seen, *lines][-200:]
