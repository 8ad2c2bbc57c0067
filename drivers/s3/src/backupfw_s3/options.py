"""The driver's options, in ``[store:NAME]``."""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

from backupfw.chunkstore.options import ConfigError

#: Bytes of a key for SSE-C (AES-256).
CUSTOMER_KEY_BYTES = 32
#: Values of ``lock_mode``.
COMPLIANCE, GOVERNANCE = "compliance", "governance"


def options() -> Sequence[cfg.Opt]:
    """Return new option objects."""
    return (*_server(), *_credentials(), *_connection(), *_objects())


def _server() -> Sequence[cfg.Opt]:
    return (
        cfg.URIOpt(
            "endpoint",
            schemes=["http", "https"],
            help="Address of the S3 service, e.g. https://s3.example.org. Without it AWS in the region.",
        ),
        cfg.StrOpt(
            "region",
            help="Region that requests are signed for. Without it that of the SDK's own configuration "
            "(environment, profile), then us-east-1.",
        ),
        cfg.StrOpt(
            "addressing_style",
            default="auto",
            choices=["auto", "path", "virtual"],
            help="Where the bucket stands: in the path or in the host name. auto is virtual on AWS and path "
            "elsewhere.",
        ),
        cfg.StrOpt(
            "signature",
            default="v4",
            choices=["v4", "v2"],
            help="Version of the signature. v2 is for servers that know nothing newer.",
        ),
        cfg.StrOpt(
            "payload_signing",
            default="auto",
            choices=["auto", "always", "never"],
            help="Whether the SHA-256 of the body is part of the signature (v4). auto signs it without TLS "
            "only. Bodies are always sent with their MD5, which is signed.",
        ),
        cfg.StrOpt(
            "checksum_mode",
            default="auto",
            choices=["auto", "when_required", "when_supported"],
            help="Whether the newer checksums (x-amz-checksum-*) are sent and asked for wherever the "
            "protocol has them; many servers refuse or ignore them. auto is when_supported on AWS and "
            "when_required elsewhere. Never sent as trailers.",
        ),
        cfg.StrOpt(
            "conditional_put",
            default="auto",
            choices=["auto", "yes", "no"],
            help="Whether the server refuses If-None-Match: * over an existing object; 'backupfw store "
            "check' finds out. auto is yes on AWS and no elsewhere.",
        ),
        cfg.BoolOpt(
            "sorted_listing",
            default=True,
            help="The server lists in the order of the keys' UTF-8 bytes, as the protocol asks. "
            "'backupfw store check' finds out.",
        ),
        cfg.BoolOpt(
            "listing_lag",
            default=False,
            help="Listings may miss recent writes and show recent deletes.",
        ),
        cfg.BoolOpt(
            "etag_is_md5",
            default=True,
            help="An ETag of 32 hexadecimal digits is the MD5 of an object that is not encrypted, as the "
            "protocol asks; compared after writes.",
        ),
        cfg.IntOpt(
            "bulk_delete_size",
            default=1000,
            min=1,
            max=1000,
            help="Keys per delete request; 1 for servers without the bulk request, which the first delete "
            "finds out otherwise.",
        ),
        cfg.BoolOpt(
            "delete_versions",
            default=False,
            help="Delete every version of an object, and its delete markers: in a bucket with versioning a "
            "plain delete frees nothing. Costs a listing request per thousand versions and needs "
            "s3:ListBucketVersions and s3:DeleteObjectVersion.",
        ),
        cfg.StrOpt(
            "lock_mode",
            default=COMPLIANCE,
            choices=[
                (COMPLIANCE, "nobody can delete what is locked, not even the owner of the account"),
                (GOVERNANCE, "who has the permission s3:BypassGovernanceRetention can"),
            ],
            help="The mode of locks, where lock_days is set. backupfw never bypasses a lock: do not give its "
            "credentials that permission.",
        ),
        cfg.StrOpt(
            "bucket_location",
            help="Location constraint of new buckets. Without it the region on AWS, none elsewhere.",
        ),
        cfg.StrOpt(
            "check_bucket",
            help="An existing bucket in which checks may write an object. Without it a check makes a bucket "
            "of its own and removes it, which needs s3:CreateBucket and s3:DeleteBucket.",
        ),
    )


def _credentials() -> Sequence[cfg.Opt]:
    return (
        cfg.StrOpt(
            "access_key_id",
            secret=True,
            help="Access key. Without it the SDK looks for credentials itself: environment, the profile's "
            "files, container or instance role; those are renewed before they expire.",
        ),
        cfg.StrOpt("secret_access_key", secret=True, help="Secret key that belongs to the access key."),
        cfg.StrOpt(
            "session_token",
            secret=True,
            help="Token of temporary credentials. They are not renewed: use a profile or a role for that.",
        ),
        cfg.StrOpt(
            "profile",
            help="Profile in the SDK's files (~/.aws of the service's user). Not together with "
            "access_key_id.",
        ),
    )


def _connection() -> Sequence[cfg.Opt]:
    return (
        cfg.StrOpt(
            "ca_bundle",
            help="File with the CA certificates that the server's is checked against. Without it the "
            "SDK's own.",
        ),
        cfg.BoolOpt(
            "verify",
            default=True,
            help="Check the server's certificate. Without it anybody in between can read and change "
            "everything.",
        ),
        cfg.URIOpt(
            "proxy",
            secret=True,
            schemes=["http", "https"],
            help="Proxy for all requests, e.g. http://user:password@proxy.example.org:3128. Without it those "
            "of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).",
        ),
        cfg.FloatOpt(
            "connect_timeout",
            default=10.0,
            min=0.1,
            max=600,
            help="Seconds after which a connection that does not come about counts as failed.",
        ),
        cfg.FloatOpt(
            "read_timeout",
            default=60.0,
            min=0.1,
            max=3600,
            help="Seconds without a byte after which a request counts as failed.",
        ),
        cfg.IntOpt(
            "pool_size",
            default=32,
            min=1,
            max=1000,
            help="Connections kept open; more are made when more requests run at once, and closed after it.",
        ),
    )


def _objects() -> Sequence[cfg.Opt]:
    return (
        cfg.StrOpt(
            "storage_class",
            help="Storage class of new objects, e.g. STANDARD_IA. Not one from which objects must be brought "
            "back before they can be read.",
        ),
        cfg.StrOpt(
            "server_encryption",
            default="none",
            choices=["none", "sse-s3", "sse-kms", "sse-c"],
            help="Encryption by the server: with its own keys, with a key of the key management service, or "
            "with the key given here (only over TLS). none leaves it to the bucket's settings.",
        ),
        cfg.StrOpt("kms_key_id", help="Key for sse-kms. Without it the account's default key."),
        cfg.StrOpt(
            "customer_key",
            secret=True,
            help="Key for sse-c: 32 bytes in base64. Who loses it loses all objects written with it; one "
            "store has one key.",
        ),
    )


def is_aws(options: Any) -> bool:
    """Say whether the endpoint is AWS's own."""
    if not options.endpoint:
        return True
    host = urllib.parse.urlsplit(options.endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def customer_key(options: Any) -> bytes | None:
    """Return the key for SSE-C, None when it is not used.

    :raises ConfigError: the option is missing or no such key.
    """
    if options.server_encryption != "sse-c":
        return None
    try:
        key = base64.b64decode(options.customer_key or "", validate=True)
    except binascii.Error:
        key = b""
    if len(key) != CUSTOMER_KEY_BYTES:
        # The value stays out of the text.
        raise ConfigError(
            f"server_encryption = sse-c needs customer_key: {CUSTOMER_KEY_BYTES} bytes in base64"
        )
    return key


def require_consistent(options: Any) -> None:
    """Refuse options that do not fit together.

    :raises ConfigError: names them, without their values.
    """
    if bool(options.access_key_id) != bool(options.secret_access_key):
        raise ConfigError("access_key_id and secret_access_key are given both or neither")
    if options.session_token and not options.access_key_id:
        raise ConfigError("session_token needs access_key_id and secret_access_key")
    if options.profile and options.access_key_id:
        raise ConfigError("profile and access_key_id exclude each other")
    if options.customer_key and options.server_encryption != "sse-c":
        raise ConfigError("customer_key is for server_encryption = sse-c")
    if options.kms_key_id and options.server_encryption != "sse-kms":
        raise ConfigError("kms_key_id is for server_encryption = sse-kms")
    if not options.endpoint:
        return
    endpoint = urllib.parse.urlsplit(options.endpoint)
    if endpoint.username or endpoint.password or endpoint.query or endpoint.fragment:
        raise ConfigError("endpoint has only scheme, host, port and path")
    if options.server_encryption == "sse-c" and endpoint.scheme != "https":
        raise ConfigError(
            "server_encryption = sse-c sends the key with each request: it needs an https endpoint"
        )
