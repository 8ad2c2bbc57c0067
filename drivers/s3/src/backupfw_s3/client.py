"""Makes the SDK's client: it retries nothing, and nothing secret is in its log."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from typing import Any

import boto3
import botocore.exceptions as sdk
import botocore.loaders
import botocore.session
from botocore.config import Config

from backupfw.chunkstore.options import ConfigError
from backupfw_s3.options import is_aws

#: Making sessions and clients is not thread-safe, using a client is.
_making = threading.Lock()
#: Reads the SDK's description of S3, which costs more than all the rest of a client: once is enough.
_loader = botocore.loaders.create_loader()


def make_client(options: Any) -> Any:
    """Return a client for the options; it may be used from many threads.

    :raises ConfigError: the SDK refuses an option.
    """
    try:
        with _making:
            core = botocore.session.Session()
            core.register_component("data_loader", _loader)
            session = boto3.session.Session(
                botocore_session=core,
                aws_access_key_id=options.access_key_id,
                aws_secret_access_key=options.secret_access_key,
                aws_session_token=options.session_token,
                profile_name=options.profile,
            )
            client = session.client(
                "s3",
                endpoint_url=options.endpoint,
                region_name=options.region or session.region_name or "us-east-1",
                verify=(options.ca_bundle or None) if options.verify else False,
                config=_config(options),
            )
            _silence_debugging()
    except (sdk.BotoCoreError, ValueError) as error:
        raise ConfigError(f"the SDK refuses the options: {error}") from error
    events = client.meta.events
    events.register("before-sign.s3.PutObject", _send_at_once)
    if options.signature == "v2" and client.meta.config.s3["addressing_style"] == "path":
        events.register("before-sign.s3", _sign_the_path)
    events.register_last("before-call.s3.DeleteObjects", _add_md5 if sends_checksums(options) else _use_md5)
    return client


def sends_checksums(options: Any) -> bool:
    """Say whether x-amz-checksum-* headers are used."""
    if options.checksum_mode == "auto":
        return is_aws(options)
    return bool(options.checksum_mode == "when_supported")


def _config(options: Any) -> Config:
    style = options.addressing_style
    if style == "auto":
        style = "virtual" if is_aws(options) else "path"
    # AWS buckets whose names cannot be part of a host name are addressed by path all the same.
    s3: dict[str, Any] = {"addressing_style": "auto" if style == "virtual" and is_aws(options) else style}
    if options.payload_signing != "auto":
        s3["payload_signing_enabled"] = options.payload_signing == "always"
    checksums = "when_supported" if sends_checksums(options) else "when_required"
    return Config(
        signature_version={"v4": "s3v4", "v2": "s3"}[options.signature],
        s3=s3,
        # One try: only the retry layer repeats calls.
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=options.connect_timeout,
        read_timeout=options.read_timeout,
        max_pool_connections=options.pool_size,
        tcp_keepalive=True,
        proxies={"http": options.proxy, "https": options.proxy} if options.proxy else None,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        # Only the driver's own options choose the endpoint.
        ignore_configured_endpoint_urls=True,
        user_agent_extra="backupfw",
    )


def _send_at_once(request: Any, **_: Any) -> None:
    """Send bodies without asking first: that costs a round trip, or a second if the server is silent."""
    del request.headers["Expect"]


def _sign_the_path(request: Any, **_: Any) -> None:
    """Sign the path that is sent: the SDK's v2 signs a slash after the bucket that is not in it."""
    request.auth_path = None


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Give a bulk delete the checksum that some servers require, beside a newer one."""
    md5 = hashlib.md5(params["body"], usedforsecurity=False)
    params["headers"]["Content-MD5"] = base64.b64encode(md5.digest()).decode()


def _use_md5(params: dict[str, Any], **_: Any) -> None:
    """Give a bulk delete the checksum that every server knows, instead of a newer one."""
    _add_md5(params)
    for name in ("request_algorithm", "request_algorithm_header"):
        params["context"].get("checksum", {}).pop(name, None)


def _nothing_below_info(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO


def _silence_debugging() -> None:
    """Keep the SDK's debug records out of every log: they hold whole requests, keys and tokens included."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("botocore", "boto3"):
            # Adding the same filter again changes nothing.
            logging.getLogger(name).addFilter(_nothing_below_info)
