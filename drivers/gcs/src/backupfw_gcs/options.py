"""The driver's options, in ``[store:NAME]``."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

#: Where Google serves the JSON API.
ENDPOINT = "https://storage.googleapis.com"


def options() -> Sequence[cfg.Opt]:
    """Return new option objects."""
    return (
        cfg.StrOpt(
            "service_account_file",
            help="Path of a service account's key file (JSON). Unset: the ambient credentials of the host "
            "are used (GOOGLE_APPLICATION_CREDENTIALS, gcloud's, or the metadata server's).",
        ),
        cfg.BoolOpt(
            "anonymous",
            default=False,
            help="Send no credentials at all: for emulators.",
        ),
        cfg.StrOpt(
            "project",
            help="The project that new buckets are made in and buckets are listed of. Unset: the one that "
            "the credentials name.",
        ),
        cfg.StrOpt(
            "location",
            regex=r"^[A-Za-z0-9-]+\Z",
            help="Where new buckets are made: a region, dual-region or multi-region, e.g. EUROPE-WEST3. "
            "Unset: Google's default (US).",
        ),
        cfg.StrOpt(
            "storage_class",
            choices=["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"],
            ignore_case=True,
            help="Storage class of objects and of new buckets. Unset: the bucket's default class. All but "
            "STANDARD bill a least time of storage and every read.",
        ),
        cfg.StrOpt(
            "endpoint",
            default=ENDPOINT,
            regex=r"^https?://[^/?#@\s]+\Z",
            help="Scheme, host and port of the JSON API, no path: for private endpoints and emulators.",
        ),
        cfg.StrOpt(
            "proxy",
            secret=True,
            regex=r"^https?://\S+\Z",
            help="HTTP proxy for requests to the endpoint and for tokens; may hold user and password. "
            "Unset: HTTPS_PROXY and NO_PROXY of the environment count.",
        ),
        cfg.StrOpt(
            "ca_bundle",
            help="Path of a PEM file with the authorities to trust, instead of the public ones. Unset: "
            "REQUESTS_CA_BUNDLE of the environment counts.",
        ),
        cfg.FloatOpt(
            "connect_timeout",
            default=10.0,
            min=0.1,
            max=600,
            help="Seconds a connection may take to come about.",
        ),
        cfg.FloatOpt(
            "read_timeout",
            default=60.0,
            min=0.1,
            max=3600,
            help="Seconds without a single byte of an answer until a request counts as a temporary failure.",
        ),
        cfg.IntOpt(
            "pool_size",
            default=32,
            min=1,
            max=1000,
            help="Connections kept open for the next request. More threads than this work too, with new "
            "connections.",
        ),
        cfg.IntOpt(
            "bulk_delete_size",
            default=100,
            min=1,
            max=100,
            help="Most objects deleted with one request; 1 for servers without batch requests.",
        ),
        cfg.StrOpt(
            "check_bucket",
            help="An existing bucket that 'backupfw store check' writes its test object to. Unset: it makes "
            "a bucket and removes it, which needs the permissions for that.",
        ),
    )
