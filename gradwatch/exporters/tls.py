"""HTTPS, and clients that must show a certificate."""

from __future__ import annotations

import ssl

from gradwatch.errors import ConfigError, ServeError


def server_context(certfile: str | None, keyfile: str | None, client_cafile: str | None) -> ssl.SSLContext | None:
    """What HTTPS needs, or None for HTTP; arguments and errors as for `gradwatch.serve`."""
    if (certfile is None) != (keyfile is None):
        raise ConfigError("certfile and keyfile belong together: give both for HTTPS, or neither")
    if certfile is None:
        if client_cafile is not None:
            raise ConfigError("client_cafile needs HTTPS: give certfile and keyfile as well")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile, keyfile)
        if client_cafile is not None:
            context.load_verify_locations(client_cafile)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:  # ssl.SSLError is one
        raise ServeError(
            f"the certificate cannot be used ({exc.strerror or exc}); certfile, keyfile and client_cafile "
            "must be readable PEM files that fit together"
        ) from exc
    return context
