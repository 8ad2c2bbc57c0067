"""Clients that work without a pause while something is broken, and what they may see of it."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.integration.faults.world import Installation, Subject, wait

#: How many backups of a volume are kept.
_KEPT = 2


class Load:
    """Use it in a ``with`` block: its clients begin and end with it, and what they saw is judged at the end.

    Each has a volume of its own, and makes backups, sets metadata, reads both and deletes backups.  An answer
    of 503 is asked again; what was refused after one may have been done before.

    :ivar answers: how often each status was answered.
    """

    def __init__(self, installed: Installation, folder: Path, clients: int = 2) -> None:
        self._installed = installed
        self._subjects = [Subject(installed, folder, seed, 4 << 20) for seed in range(1, clients + 1)]
        self._kept: dict[str, list[str]] = {subject.volume: [] for subject in self._subjects}
        self._gone: list[str] = []
        self._rounds = {subject.volume: 0 for subject in self._subjects}
        self._wrong: list[str] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in self._subjects]
        self.answers: Counter[int] = Counter()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        if error is None:
            self._judge()

    def go_on(self, rounds: int) -> None:
        """Return when each client has done so many rounds more."""
        before = dict(self._rounds)
        wait(
            f"{rounds} rounds",
            lambda: self._wrong or all(self._rounds[volume] >= before[volume] + rounds for volume in before),
            self._installed.log_tail,
        )
        assert not self._wrong, self._wrong

    def _judge(self) -> None:
        assert not self._wrong, self._wrong
        client = self._installed.client()
        self._installed.wait_idle()
        found = client.expect(200, "GET", "/backups/detail")["backups"]
        bad = [
            (one["id"], one["status"], one["fail_reason"]) for one in found if one["status"] != "available"
        ]
        assert not bad, f"{bad}\n{self._installed.log_tail()}"
        there = {one["id"] for one in found}
        assert there >= {backup for kept in self._kept.values() for backup in kept}
        assert there.isdisjoint(self._gone)
        subject = self._subjects[0]
        subject.assert_restores(self._kept[subject.volume][-1])
        self._installed.audit()

    def _run(self, subject: Subject) -> None:
        try:
            while not self._end.is_set():
                self._round(subject)
                self._rounds[subject.volume] += 1
        except Exception:
            self._wrong.append(traceback.format_exc())

    def _round(self, subject: Subject) -> None:
        volume, kept = subject.volume, self._kept[subject.volume]
        values = {"round": str(self._rounds[volume])}
        self._ask(subject, 200, "PUT", f"/volumes/{volume}/metadata", {"metadata": values})
        read = self._ask(subject, 200, "GET", f"/volumes/{volume}/metadata")["metadata"]
        assert read == values, f"{read} where {values} was written"
        wish = {"volume_id": volume, "incremental": bool(kept)}
        made = self._ask(subject, 202, "POST", "/backups", {"backup": wish})
        if made is None:
            # Made by the try that was answered 503, whose backup nobody knows by its id.
            self._reach(subject, f"/volumes/{volume}", "volume", "available")
            return
        backup = made["backup"]["id"]
        self._reach(subject, f"/backups/{backup}", "backup", "available")
        kept.append(backup)
        if len(kept) > _KEPT:
            self._gone.append(kept.pop(0))
            self._ask(subject, 202, "DELETE", f"/backups/{self._gone[-1]}")

    def _reach(self, subject: Subject, path: str, kind: str, status: str) -> None:
        def there() -> bool:
            found = self._ask(subject, 200, "GET", path)[kind]
            assert found["status"] != "error", found
            return bool(found["status"] == status)

        wait(f"{path} to be {status}", there)

    def _ask(self, subject: Subject, wanted: int, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's body; None: it was refused after a 503."""
        again = False
        while True:
            status, answer = subject.client.request(method, path, body)
            self.answers[status] += 1
            if status != 503:
                break
            again = True
            time.sleep(0.2)
        if again and method != "GET" and status in (400, 404, 409):
            return None
        assert status == wanted, f"{method} {path}: {status} {answer}"
        return answer
