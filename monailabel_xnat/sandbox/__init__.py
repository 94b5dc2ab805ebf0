"""An XNAT-compatible server in a box: for demos, for tests, for everyone who writes code against XNAT.

It is a sandbox, not an archive for patients.
"""

from monailabel_xnat.sandbox.server import Sandbox

__all__ = ["Sandbox"]
