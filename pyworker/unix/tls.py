"""The TLS context of listeners, and what is wrong with its files. Reads them now; to read them again is a reload's matter."""

from __future__ import annotations

import ssl

from pyworker.unix.procfs import read_all

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_ANY_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h


def context(cert_path: str, key_path: str, ca_path: str | None) -> ssl.SSLContext:
    """Return a server context (TLS 1.2 and later, HTTP/1.1 by ALPN); with `ca_path` clients must show a certificate.

    Paths may be /proc/self/fd/N. Raises OSError (ssl.SSLError is one) or ValueError.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.options |= ssl.OP_NO_RENEGOTIATION  # which costs a client nothing; OpenSSL before 3 takes part in it
    try:
        made.load_cert_chain(cert_path, key_path, _no_phrase)
    except ssl.SSLError as error:
        raise ValueError(_why(error, cert_path)) from None
    made.set_alpn_protocols(["http/1.1"])
    if ca_path is not None:
        try:
            made.load_verify_locations(ca_path)
        except ssl.SSLError as error:
            raise ValueError(f"`tls.ca` is no certificate, or not whole: {error}") from None
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def validity(cert_path: str, key_path: str) -> tuple[float, float] | None:
    """Return from when to when the (first) certificate is valid, in seconds since the epoch; None: it cannot be told.

    Python reads a certificate only when a peer has shown it, and is trusted. So this is a handshake in memory, with a
    client that trusts this one certificate, at any time. Takes a few milliseconds.
    """
    try:
        text = read_all(cert_path).decode("ascii", "replace")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(cert_path, key_path, _no_phrase)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _ANY_TIME
        first = text[text.index(_BEGIN) : text.index(_END) + len(_END)]
        client.load_verify_locations(cadata=ssl.PEM_cert_to_DER_cert(first))
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        asking = client.wrap_bio(to_client, to_server)
        answering = server.wrap_bio(to_server, to_client, server_side=True)
        for side in (asking, answering, asking, answering, asking):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:  # it is the other one's turn
                continue
        found = asking.getpeercert() or {}
        return ssl.cert_time_to_seconds(str(found["notBefore"])), ssl.cert_time_to_seconds(str(found["notAfter"]))
    except (OSError, ValueError, KeyError):  # ValueError: also no handshake yet; it serves, or not, without being read
        return None


def _no_phrase() -> str:
    message = "the key is encrypted, and nobody is there to type its pass phrase (openssl pkey -in KEY -out PLAIN)"
    raise ValueError(message)


def _why(error: ssl.SSLError, cert_path: str) -> str:
    """OpenSSL names neither the file nor, mostly, what is wrong with it: "[SSL] PEM lib"."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return "`tls.key` is not the key of the (first) certificate in `tls.cert`"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert_path)
    except ssl.SSLError:
        return "`tls.cert` is no certificate, or not whole" + (f": {error}" if error.reason else "")
    return str(error) if error.reason else "`tls.key` is no private key, or not whole"
