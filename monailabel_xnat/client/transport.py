"""The requests sessions that things are sent through: one of our own, or one beside somebody else's."""

from __future__ import annotations

import os

import requests
import xnat
from requests.adapters import BaseAdapter
from requests.cookies import RequestsCookieJar
from requests.utils import get_environ_proxies

from monailabel_xnat.client.cookies import own_cookies
from monailabel_xnat.config import Settings


class Transport(requests.Session):
    """A requests session that follows no redirect after a write: that would repeat it as a GET, or without its body."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where a redirect leads, None if it is not to be followed."""
        return super().get_redirect_target(resp) if resp.request.method in ("GET", "HEAD") else None

    def mount_everywhere(self, adapter: BaseAdapter) -> None:
        """Send everything through one adapter."""
        self.mount("https://", adapter)
        self.mount("http://", adapter)


def own_transport(settings: Settings) -> Transport:
    """Make a requests session from the settings; an adapter is still to be mounted.

    ``xnat.connect`` cannot be given a certificate authority or a client certificate.
    """
    transport = Transport()
    transport.auth = without_credentials
    transport.headers["User-Agent"] = f"monailabel-xnat xnatpy/{xnat.__version__}"
    transport.cookies = own_cookies()
    # What the environment says is taken once: requests would look through all of it at each request, and let the
    # certificate authorities it names override our settings.
    transport.trust_env = False
    transport.proxies.update(get_environ_proxies(settings.server))
    transport.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    if settings.ca_bundle or not settings.verify_tls:
        transport.verify = str(settings.ca_bundle) if settings.verify_tls else False
    if settings.client_certificate:
        transport.cert = str(settings.client_certificate)
    return transport


def twin_of(session: requests.Session, cookies: RequestsCookieJar | None = None) -> Transport:
    """Make a requests session that connects as another one does; an adapter is still to be mounted.

    Parameters
    ----------
    session : requests.Session
        Whose TLS settings, proxies, headers and authentication it gets.
    cookies : RequestsCookieJar or None
        The cookies to share; None: those of the other session.
    """
    twin = Transport()
    twin.cookies = session.cookies if cookies is None else cookies
    twin.headers = session.headers
    twin.auth = session.auth
    twin.proxies = session.proxies
    twin.params = session.params
    twin.verify = session.verify
    twin.cert = session.cert
    twin.trust_env = session.trust_env
    return twin


def without_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keep requests from adding ~/.netrc's credentials: with them every call would open an XNAT session."""
    return request
