"""The datastore: its methods, how it is opened, its errors for clients, and the facts and texts that it shows."""

from __future__ import annotations

from monailabel_xnat.datastore.datastore import XNATDatastore

__all__ = ["XNATDatastore"]
