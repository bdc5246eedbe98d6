"""Worker: the TLS context of an app's listeners. Reads the files now; reading them again is a reload's matter."""

from __future__ import annotations

import ssl


def context(cert_path: str, key_path: str, ca_path: str | None) -> ssl.SSLContext:
    """Return a server context (TLS 1.2 and later, HTTP/1.1 by ALPN); with `ca_path` clients must show a certificate.

    Paths may be /proc/self/fd/N. Raises OSError (ssl.SSLError is one) or ValueError.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION  # which costs a client nothing; OpenSSL before 3 takes part in it
    made.load_cert_chain(cert_path, key_path, _no_phrase)
    made.set_alpn_protocols(["http/1.1"])
    if ca_path is not None:
        made.load_verify_locations(ca_path)
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _no_phrase() -> str:
    raise ValueError(
        "the key is encrypted, and nobody is there to type its pass phrase (openssl pkey -in KEY -out PLAIN)"
    )
