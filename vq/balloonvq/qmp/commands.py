"""What each QMP verb does to a machine.

Two kinds of verbs: QEMU's own, with QEMU's arguments, replies and error
texts, so that its tools need not know the difference; and ours, which start
with ``x-`` and answer with the documents of `balloonvq.counters`.

=============================  =============================================================
``balloon``                    value: bytes that are left to the guest
``query-balloon``              {"actual": bytes left to the guest}
``query-status``               {"status": "running", "running": true}
``query-commands``             every verb
``query-version``              as in the greeting
``query-name``                 {"name": ...}
``qom-list``                   the few objects there are
``qom-get``, ``qom-set``       guest-stats, guest-stats-polling-interval
``quit``                       end the machine
``x-status``                   `Status`
``x-wait``                     timeout: seconds; `WaitResult`
``x-oom``                      size: bytes, gfp-fs, while-filling; `OomReport`
``x-stats``                    refresh; `StatsReport`
``x-compact``                  pages; `CompactReport`
``x-deadlock``                 `DeadlockReport` or null
``x-check``                    {"checked_pages": ..., "lost_pages": ...}
``x-fault``                    the fields of `struct bln_faults`, with dashes
=============================  =============================================================

Arguments are checked before anything happens: a name that the verb does not
know, a type or a range that does not fit is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeAlias

from balloonvq.counters import (
    STAT_NAMES,
    CompactReport,
    DeadlockReport,
    OomReport,
    StatsReport,
    Status,
    WaitResult,
    to_document,
)
from balloonvq.errors import CommandFailed, MachineStopped
from balloonvq.qmp.messages import Greeting

__all__ = ["BALLOON_PATHS", "PAGE_BYTES", "Commands", "MachineAPI"]

#: Size of a balloon page, whatever the page size of host or guest (virtio 1.3 §5.5.6).
PAGE_BYTES = 4096

#: Where QOM has the balloon; the second is what QEMU gives a device without an id.
BALLOON_PATHS = ("/machine/peripheral/balloon0", "/machine/peripheral-anon/device[0]")

#: What QEMU shows for a statistic that the guest did not send.
UNREPORTED = (1 << 64) - 1

_INT64_MAX = (1 << 63) - 1
_UINT32_MAX = (1 << 32) - 1
_UINT64_MAX = (1 << 64) - 1

JSONObject: TypeAlias = dict[str, Any]


class MachineAPI(Protocol):
    """What a machine must be able to do to be driven by QMP.

    Methods are called from several threads. An error that a person can act on is a
    `BalloonError`; anything else is reported as a bug of balloonctl.
    """

    @property
    def name(self) -> str:
        """The machine's name."""

    @property
    def ram_bytes(self) -> int:
        """Guest memory."""

    @property
    def target_pages(self) -> int:
        """Size of the balloon that the host asked for."""

    @property
    def actual_pages(self) -> int:
        """Size of the balloon as the driver reported it."""

    @property
    def stats_polling_interval(self) -> int:
        """Seconds between two statistics requests; 0: none are made."""

    @stats_polling_interval.setter
    def stats_polling_interval(self, seconds: int) -> None: ...

    def status(self) -> Status:
        """The machine at this moment."""

    def set_target(self, pages: int) -> None:
        """Ask for a balloon of that size; returns at once."""

    def wait(self, timeout_ns: int | None, abandoned: Callable[[], bool] | None) -> WaitResult:
        """Wait until the balloon has its target or will not get there.

        `abandoned` is asked every now and then; once it says True nobody wants the
        result any more and the call returns or raises soon.
        """

    def sleep(self, duration_ns: int) -> None:
        """Let that much of the machine's time pass."""

    def oom(self, size_bytes: int | None, gfp_fs: bool, while_filling: bool) -> OomReport:
        """Run a guest task that allocates until memory is out, or `size_bytes`."""

    def statistics(self, refresh: bool) -> StatsReport:
        """The guest's statistics; with `refresh` the guest is asked first."""

    def compact(self, pages: int | None) -> CompactReport:
        """Move up to that many balloon pages, all if None."""

    def check(self) -> dict[str, int]:
        """Verify every page of every guest task: ``checked_pages`` and ``lost_pages``."""

    def deadlock(self) -> DeadlockReport | None:
        """The circle, if guest tasks wait for each other in one."""

    def set_faults(self, **fields: int) -> None:
        """Inject trouble: the fields of `struct bln_faults`."""

    def subscribe(self, callback: Callable[[str, JSONObject], None]) -> Callable[[], None]:
        """Have `callback(event, data)` called for each event; returns what ends it."""

    def request_quit(self) -> None:
        """Ask whoever runs the machine to end it; returns at once."""


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One argument of a verb and what it may be."""

    kind: str
    """integer, number, boolean, string or array: QEMU's words for types."""
    required: bool = False
    minimum: int | None = None
    maximum: int | None = None

    def check(self, name: str, value: object) -> None:
        """:raise CommandFailed: the value does not fit."""
        fits = {
            "integer": type(value) is int,
            "number": type(value) in (int, float),
            "boolean": type(value) is bool,
            "string": type(value) is str,
            "array": type(value) is list,
            "any": True,
        }[self.kind]
        if not fits:
            raise CommandFailed(f"Invalid parameter type for '{name}', expected: {self.kind}")
        if isinstance(value, int | float):
            if self.minimum is not None and value < self.minimum:
                raise CommandFailed(f"Parameter '{name}' expects a value of at least {self.minimum}")
            if self.maximum is not None and value > self.maximum:
                raise CommandFailed(f"Parameter '{name}' expects a value of at most {self.maximum}")


@dataclass(frozen=True, slots=True)
class _Call:
    """One command on its way: its checked arguments and whether its client is still there."""

    arguments: JSONObject
    abandoned: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Verb:
    """What is done for a verb, and the arguments that it takes."""

    run: Callable[[_Call], Any]
    parameters: dict[str, _Parameter]


def _never() -> bool:
    return False


class Commands:
    """The verbs of one machine. Has no state of its own; any thread may call it."""

    def __init__(
        self,
        machine: MachineAPI,
        *,
        version: Greeting | None = None,
        on_quit: Callable[[], None] | None = None,
    ) -> None:
        """Drive `machine`.

        `version` is what greeting and ``query-version`` say. `on_quit` is called for the
        verb ``quit`` in place of `machine.request_quit`.
        """
        self.machine = machine
        self.version = version or Greeting()
        self._quit = on_quit or machine.request_quit
        faults = {
            name: _Parameter(
                "integer", minimum=0, maximum=_UINT64_MAX if name == "ack-delay-ns" else _UINT32_MAX
            )
            for name in (
                "ack-delay-ns",
                "stall-queues",
                "lose-kicks",
                "lose-calls",
                "wrong-used-len",
                "fail-discards",
            )
        }
        path = _Parameter("string", required=True)
        count = _Parameter("integer", minimum=1, maximum=_INT64_MAX)
        flag = _Parameter("boolean")
        # A year is beyond any use and keeps the nanoseconds far from an overflow in C.
        seconds = _Parameter("number", minimum=0, maximum=366 * 86400)
        self._verbs: dict[str, _Verb] = {
            "balloon": _Verb(self._balloon, {"value": _Parameter("integer", required=True)}),
            "qom-get": _Verb(self._qom_get, {"path": path, "property": path}),
            "qom-list": _Verb(self._qom_list, {"path": path}),
            "qom-set": _Verb(
                self._qom_set, {"path": path, "property": path, "value": _Parameter("any", required=True)}
            ),
            "query-balloon": _Verb(self._query_balloon, {}),
            "query-commands": _Verb(self._query_commands, {}),
            "query-name": _Verb(lambda _call: {"name": machine.name}, {}),
            "query-status": _Verb(self._query_status, {}),
            "query-version": _Verb(lambda _call: self.version.version_document(), {}),
            "quit": _Verb(self._quit_machine, {}),
            "x-check": _Verb(lambda _call: dict(machine.check()), {}),
            "x-compact": _Verb(self._compact, {"pages": count}),
            "x-deadlock": _Verb(lambda _call: to_document(machine.deadlock()), {}),
            "x-fault": _Verb(self._fault, faults),
            "x-oom": _Verb(self._oom, {"size": count, "gfp-fs": flag, "while-filling": flag}),
            "x-sleep": _Verb(self._sleep, {"seconds": seconds}),
            "x-stats": _Verb(self._stats, {"refresh": flag}),
            "x-status": _Verb(lambda _call: to_document(machine.status()), {}),
            "x-wait": _Verb(self._wait, {"timeout": seconds}),
        }

    def names(self) -> tuple[str, ...]:
        """Every verb, sorted; ``qmp_capabilities`` is the server's and among them."""
        return tuple(sorted([*self._verbs, "qmp_capabilities"]))

    def execute(
        self, verb: str, arguments: JSONObject | None = None, abandoned: Callable[[], bool] | None = None
    ) -> Any:
        """Do what the verb says and return the value of its reply, plain JSON values.

        `abandoned` tells a verb that waits that its client is gone.

        :raise CommandFailed: the verb or its arguments are refused.
        :raise BalloonError: whatever the machine raised.
        """
        found = self._verbs.get(verb)
        if found is None:
            raise CommandFailed(f"The command {verb[:80]} has not been found", error_class="CommandNotFound")
        arguments = arguments or {}
        for name, parameter in found.parameters.items():
            if name in arguments:
                parameter.check(name, arguments[name])
            elif parameter.required:
                raise CommandFailed(f"Parameter '{name}' is missing")
        for name in arguments:
            if name not in found.parameters:
                raise CommandFailed(f"Parameter '{name[:80]}' is unexpected")
        return found.run(_Call(arguments, abandoned or _never))

    # ---- QEMU's verbs ------------------------------------------------------

    def _balloon(self, call: _Call) -> JSONObject:
        left_bytes = call.arguments["value"]
        if not 0 < left_bytes <= _INT64_MAX:
            # QEMU's argument is `value`, its text says `target`.
            raise CommandFailed("Parameter 'target' expects a size")
        ram_bytes = self.machine.ram_bytes
        self.machine.set_target((ram_bytes - min(left_bytes, ram_bytes)) // PAGE_BYTES)
        return {}

    def _query_balloon(self, _call: _Call) -> JSONObject:
        return {"actual": self.machine.ram_bytes - self.machine.actual_pages * PAGE_BYTES}

    def _query_status(self, _call: _Call) -> JSONObject:
        # A deadlocked guest, a stalled driver and a broken device are nothing that a hypervisor sees: its CPUs run.
        status = {
            "bug": "guest-panicked",
            "stopping": "shutdown",
            "waiting": "prelaunch",
        }.get(self.machine.status().state, "running")
        return {"status": status, "running": status == "running"}

    def _query_commands(self, _call: _Call) -> list[JSONObject]:
        return [{"name": name} for name in self.names()]

    def _quit_machine(self, _call: _Call) -> JSONObject:
        self._quit()
        return {}

    def _qom_list(self, call: _Call) -> list[JSONObject]:
        tree = {
            "/": [("machine", "child<balloonctl-machine>")],
            "/machine": [("peripheral", "child<container>"), ("peripheral-anon", "child<container>")],
            "/machine/peripheral": [("balloon0", "child<virtio-balloon-device>")],
            "/machine/peripheral-anon": [("device[0]", "child<virtio-balloon-device>")],
        }
        for balloon in BALLOON_PATHS:
            tree[balloon] = [("guest-stats", "guest statistics"), ("guest-stats-polling-interval", "int")]
        path = call.arguments["path"]
        entries = tree.get(path.rstrip("/") or "/")
        if entries is None:
            raise _no_device(path)
        return [{"name": name, "type": kind} for name, kind in entries]

    def _qom_get(self, call: _Call) -> Any:
        wanted = _balloon_property(call)
        if wanted == "guest-stats-polling-interval":
            return self.machine.stats_polling_interval
        report = self.machine.statistics(refresh=False)
        stats = dict.fromkeys(STAT_NAMES, UNREPORTED) | report.stats
        last_update = 0
        if report.last_update is not None:
            last_update = int(datetime.fromisoformat(report.last_update).timestamp())
        return {"stats": stats, "last-update": last_update}

    def _qom_set(self, call: _Call) -> JSONObject:
        wanted = _balloon_property(call)
        if wanted == "guest-stats":
            raise CommandFailed("Property 'virtio-balloon-device.guest-stats' is not writable")
        value = call.arguments["value"]
        _Parameter("integer").check(wanted, value)
        if value < 0:
            raise CommandFailed("timer value must be greater than zero")
        if value > _UINT32_MAX:
            raise CommandFailed("timer value is too big")
        self.machine.stats_polling_interval = value
        return {}

    # ---- our own -----------------------------------------------------------

    def _sleep(self, call: _Call) -> JSONObject:
        self.machine.sleep(int(call.arguments.get("seconds", 0) * 1_000_000_000))
        return {}

    def _wait(self, call: _Call) -> Any:
        seconds = call.arguments.get("timeout")
        timeout_ns = None if seconds is None else int(seconds * 1_000_000_000)
        result = self.machine.wait(timeout_ns, call.abandoned)
        if call.abandoned():
            raise MachineStopped(f"the machine {self.machine.name} ended while it was waited for")
        return to_document(result)

    def _oom(self, call: _Call) -> Any:
        return to_document(
            self.machine.oom(
                call.arguments.get("size"),
                call.arguments.get("gfp-fs", True),
                call.arguments.get("while-filling", False),
            )
        )

    def _stats(self, call: _Call) -> Any:
        return to_document(self.machine.statistics(call.arguments.get("refresh", False)))

    def _compact(self, call: _Call) -> Any:
        return to_document(self.machine.compact(call.arguments.get("pages")))

    def _fault(self, call: _Call) -> JSONObject:
        self.machine.set_faults(**{name.replace("-", "_"): value for name, value in call.arguments.items()})
        return {}


def _no_device(path: str) -> CommandFailed:
    return CommandFailed(f"Device '{path[:80]}' not found", error_class="DeviceNotFound")


def _balloon_property(call: _Call) -> str:
    """The property that qom-get or qom-set is about.

    :raise CommandFailed: there is no such object, or it has no such property.
    """
    path, wanted = str(call.arguments["path"]), str(call.arguments["property"])
    if path not in BALLOON_PATHS:
        raise _no_device(path)
    if wanted not in ("guest-stats", "guest-stats-polling-interval"):
        raise CommandFailed(f"Property 'virtio-balloon-device.{wanted[:80]}' not found")
    return wanted
