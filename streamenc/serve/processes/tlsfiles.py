"""TLS: the certificate's and the key's files, with errors that say what is wrong with them."""

from __future__ import annotations

import ssl
from pathlib import Path

from streamenc.errors import UsageError


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For a server of HTTP/1.1. Raises UsageError."""
    for what, path in (("certificate", certificate), ("key", key)):
        try:
            text = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the TLS {what} {path}: {error.strerror}") from None
        wanted = b"CERTIFICATE-----" if what == "certificate" else b"PRIVATE KEY-----"
        if wanted not in text:
            raise UsageError(
                f"{path} is no TLS {what} in PEM: wanted a file with "
                f"-----BEGIN {wanted.decode().rstrip('-')}-----"
            )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def password() -> str:
        raise UsageError(
            f"the TLS key {key} is encrypted: decrypt it (openssl pkey -in {key} -out plain.pem)"
        )

    try:
        context.load_cert_chain(certificate, key, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise UsageError(f"the TLS key {key} is not that of {certificate}") from None
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise UsageError(f"cannot use {certificate} and {key} for TLS: {reason}") from None
    return context
