"""The one way into the C2PA library: a context with our settings. No network, no thumbnails, no anchors but those given.

Contexts die in forked children ("Context is not valid"), so whoever needs one makes it here, uses it once and closes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from c2pa import Context  # type: ignore[import-untyped]

# emailProtection, documentSigning, c2pa-kp-claimSigning: by default the library accepts the first alone, and calls the others invalid.
EKUS = "1.3.6.1.5.5.7.3.4\n1.3.6.1.5.5.7.3.36\n1.3.6.1.4.1.62558.2.1\n"


def open_context(anchors: bytes) -> Context:
    """A context without network, thumbnails or anchors but ours."""
    import c2pa

    trust = {"trust_config": EKUS} | ({"trust_anchors": anchors.decode("ascii")} if anchors else {})
    settings = {
        "core": {"allowed_network_hosts": [], "allow_redirects": False},
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"remote_manifest_fetch": False, "verify_after_sign": False, "ocsp_fetch": False},
        "trust": trust,
    }
    return c2pa.Context(c2pa.Settings.from_dict(settings))


def signing_context(*, relay: bool) -> Context:
    """A context that signs, and reads back what it signed. `relay`: it may talk to this machine's loopback address (time stamps)."""
    import c2pa

    settings = {
        "core": {"allowed_network_hosts": ["127.0.0.1"] if relay else [], "allow_redirects": False},
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"remote_manifest_fetch": False, "verify_after_sign": True, "ocsp_fetch": False},
        "trust": {"trust_config": EKUS},
    }
    return c2pa.Context(c2pa.Settings.from_dict(settings))


def one_line(error: Exception) -> str:
    """An error of the library as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
