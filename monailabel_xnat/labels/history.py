"""What a list of the versions of a label says of each."""

from __future__ import annotations

from typing import Any

from monailabel_xnat.labels.model import LabelVersion


def summary_of(version: LabelVersion) -> dict[str, Any]:
    """Say when and by whom a version was saved, and what it holds.

    Parameters
    ----------
    version : LabelVersion
        With its description.

    Returns
    -------
    dict
        ``version`` (its name), ``saved_at`` (UTC, ISO 8601), ``saved_by``, ``model``, ``segments`` (list of ``value``,
        ``name``, ``colour``, ``voxels``), ``restored_from``, and ``in_xnat``: False while it waits in the outbox. What
        is not known, as of a label that another program left, is None. ``problem`` is there only where the description
        is missing or cannot be used, and says why.
    """
    description, saved = version.sidecar, version.saved_at
    return {
        "version": version.name,
        "saved_at": description.get("saved_at") or (saved.isoformat() if saved else None),
        "saved_by": description.get("saved_by"),
        "model": (description.get("source") or {}).get("model"),
        "segments": description.get("segments") or [],
        "restored_from": description.get("restored_from"),
        "in_xnat": not version.is_pending,
        **({"problem": version.problem} if version.problem else {}),
    }
