"""A server that behaves like XNAT, for demos, for tests, and for everyone who writes code against XNAT.

It is a sandbox. Do not use it as an archive for data of patients. `http.router.ROUTES` says what answers each path.
"""

from monailabel_xnat.sandbox.server import Sandbox

__all__ = ["Sandbox"]
