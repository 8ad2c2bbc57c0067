"""Accounts on the real servers: the driver's options for them, and access without the driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests

from tests.servers.ceph import Ceph
from tests.servers.keystone import Keystone, User
from tests.servers.swift import Swift


@dataclass
class Account:
    """An account, reached by plain HTTP with a token of its own.

    :ivar options: the driver's options for it.
    :ivar refused: what differs for credentials that are refused.
    :ivar sign_in: returns the account's URL and a new token.
    """

    options: dict[str, Any]
    refused: dict[str, Any]
    sign_in: Callable[[], tuple[str, str]]
    session: requests.Session = field(default_factory=requests.Session)
    url: str = ""

    def request(self, method: str, path: str, **more: Any) -> requests.Response:
        """Send a request; a token that has expired is renewed.

        :param path: below the account, not quoted.
        """
        for _ in range(2):
            if self.url:
                answer = self.session.request(method, self.url + quote(path), timeout=60, **more)
                if answer.status_code != 401:
                    break
            self.url, self.session.headers["X-Auth-Token"] = self.sign_in()
        else:
            answer = self.session.request(method, self.url + quote(path), timeout=60, **more)
        return answer


def v1_account(auth_url: str, user: str, key: str) -> Account:
    """An account with v1 authentication."""

    def sign_in() -> tuple[str, str]:
        answer = requests.get(auth_url, headers={"X-Auth-User": user, "X-Auth-Key": key}, timeout=30)
        assert answer.ok, answer.text
        return answer.headers["X-Storage-Url"], answer.headers["X-Auth-Token"]

    options = {"auth": "v1", "auth_url": auth_url, "username": user, "password": key}
    return Account(options, {"password": "not-the-password"}, sign_in)


def tempauth_account(cluster: Swift) -> Account:
    """The account of the cluster's own user."""
    return v1_account(cluster.auth_url, cluster.user, cluster.key)


def gateway_account(cluster: Ceph) -> Account:
    """An account of radosgw's Swift API."""
    key = "very-secret-key-of-the-subuser"
    cluster.admin(
        "subuser", "create", "--uid=tester", "--subuser=tester:swift", "--access=full",
        "--key-type=swift", f"--secret-key={key}",
    )  # fmt: skip
    return v1_account(f"{cluster.endpoint}/auth/v1.0", "tester:swift", key)


def keystone_account(cluster: Swift, keystone: Keystone, user: User) -> Account:
    """The account of a user's project; the catalogue must name the cluster."""

    def sign_in() -> tuple[str, str]:
        token = keystone.token(user.name, user.password, user.project)
        return f"{cluster.url}/v1/AUTH_{user.project_id}", token

    options = {
        "auth_url": keystone.url,
        "username": user.name,
        "password": user.password,
        "project_name": user.project,
    }
    return Account(options, {"password": "not-the-password"}, sign_in)


def publish(cluster: Swift, keystone: Keystone) -> None:
    """Enter the cluster in the catalogue."""
    url = f"{cluster.url}/v1/AUTH_%(project_id)s"
    keystone.add_endpoints("object-store", {"public": url, "internal": url})
