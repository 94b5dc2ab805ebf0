"""The settings as keyword arguments, so that type checkers and editors know their names and types."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Union

from typing_extensions import TypedDict

Texts = Union[str, Sequence[str]]
"""A comma-separated text, or a list of texts, which are not split."""

Folder = Union[str, "os.PathLike[str]"]


class SettingArguments(TypedDict, total=False):
    """Keyword arguments of :class:`~monailabel_xnat.datastore.XNATDatastore` that are settings.

    What each means stands in :class:`~monailabel_xnat.config.Settings`, which has the same fields.
    """

    auth_provider: str | None
    cache_budget: float | None
    image_format: str | None
    gantry_tilt: str | None
    image_resource: Texts | None
    compress: bool | None
    prefetch: int | None
    scan_type: Texts | None
    series_description: Texts | None
    modality: Texts | None
    quality: Texts | None
    subject: Texts | None
    session: Texts | None
    min_frames: int | None
    labels: str | Mapping[str, int] | Sequence[str] | None
    label_resource: str | Sequence[str | Sequence[str]] | None
    roi_tag: str | None
    roi_label: Texts | None
    roi_write: Texts | None
    label_scan: Texts | None
    read_only: bool | None
    allow_delete: bool | None
    keep_versions: int | None
    connections: int | None
    rate_limit: float | None
    timeout: float | None
    max_age: float | None
    verify_age: float | None
    verify_tls: bool | None
    ca_bundle: Folder | None
    client_certificate: Folder | None


ARGUMENTS = (
    *("api_url", "username", "password", "project", "asset_path", "cache_path", "conf", "environ", "connection"),
    *SettingArguments.__annotations__,
)
"""The names of all arguments of the constructor."""
