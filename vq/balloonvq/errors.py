"""The errors of balloonvq, each with what a person needs to act on it.

::

    BalloonError                    exit 1; anything below may be caught as this
    ├── InvalidArgument             exit 2  a value that can never be right
    ├── NotEnoughMemory             exit 1  the host cannot back the guest
    ├── DesignError                 exit 1  a locking design of the user cannot be used, or does not go on
    ├── ScenarioError               exit 1  a scenario of the user cannot be used
    ├── CoreError                   exit 1  the C core refused; carries its errno
    ├── MachineError                exit 1
    │   ├── MachineExists                   a live machine has that name
    │   ├── NoSuchMachine                   none has
    │   │   └── MachineDied                 it ran, and ended without being asked to
    │   ├── MachineStopped                  it ended while we were waiting
    │   └── MachineUnreachable              its socket is dead, foreign or not ours
    ├── QMPError                    exit 1
    │   ├── ProtocolError                   the peer does not speak QMP
    │   └── CommandFailed                   the peer answered with an error
    ├── WaitTimeout                 exit 124  --timeout was hit
    ├── RuleBroken                  exit 3  somebody broke a rule: the verdict of a run
    │   ├── Deadlock                        a cycle in the wait-for graph
    │   ├── KernelBug                       the guest kernel would have said BUG()
    │   ├── LostData                        a guest page lost what its task wrote
    │   └── DeviceBroken                    DEVICE_NEEDS_RESET
    └── InternalError               exit 1  a bug of balloonctl; asks for a report

Every error answers three questions: what happened, why (the state that
explains it), and what to do next (`hint`, a command where there is one).
"""

from __future__ import annotations

__all__ = [
    "BalloonError",
    "CommandFailed",
    "CoreError",
    "Deadlock",
    "DesignError",
    "DeviceBroken",
    "InternalError",
    "InvalidArgument",
    "KernelBug",
    "LostData",
    "MachineDied",
    "MachineError",
    "MachineExists",
    "MachineStopped",
    "MachineUnreachable",
    "NoSuchMachine",
    "NotEnoughMemory",
    "ProtocolError",
    "QMPError",
    "RuleBroken",
    "ScenarioError",
    "WaitTimeout",
]


class BalloonError(Exception):
    """Root of the tree.

    Attributes:
        what: what happened, one sentence without a full stop.
        why: the state that explains it; empty if there is nothing to add.
        hint: what to do next; empty if there is nothing useful to say.
    """

    #: The exit code of a command that ends with this error.
    exit_code = 1

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def as_document(self) -> dict[str, object]:
        """The error as the JSON object that travels on QMP and stderr."""
        return {
            "schema": "balloonctl/error/1",
            "error": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "hint": self.hint,
            "exit_code": self.exit_code,
        }


class InvalidArgument(BalloonError):
    """A value that can never be right, whatever the state."""

    exit_code = 2


class NotEnoughMemory(BalloonError):
    """The host cannot back the guest's memory."""


class DesignError(BalloonError):
    """A locking design of the user cannot be used, fails or does not go on; names the line."""


class ScenarioError(BalloonError):
    """A scenario of the user cannot be used; names the line."""


class CoreError(BalloonError):
    """The C core refused a call.

    Attributes:
        errno: the positive errno value that it returned.
    """

    def __init__(self, what: str, *, errno: int, why: str = "", hint: str = "") -> None:
        super().__init__(what, why=why, hint=hint)
        self.errno = errno


class MachineError(BalloonError):
    """Something about a machine as a whole."""


class MachineExists(MachineError):
    """A machine of that name is running."""


class NoSuchMachine(MachineError):
    """No machine of that name is running."""


class MachineDied(NoSuchMachine):
    """The machine of that name ended without being asked to; told once, by whoever finds what it left."""


class MachineStopped(MachineError):
    """The machine ended while somebody was waiting for it."""


class MachineUnreachable(MachineError):
    """The machine's socket cannot be used."""


class QMPError(BalloonError):
    """Something about the QMP conversation."""


class ProtocolError(QMPError):
    """The peer sent what QMP does not allow."""


class CommandFailed(QMPError):
    """The peer answered a command with an error.

    Attributes:
        error_class: QMP's error class, such as ``GenericError``.
        document: our own error object when the peer is a balloonctl machine.
    """

    def __init__(
        self,
        what: str,
        *,
        error_class: str = "GenericError",
        document: dict[str, object] | None = None,
        why: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(what, why=why, hint=hint)
        self.error_class = error_class
        self.document = document
        if document is not None and isinstance(document.get("exit_code"), int):
            self.exit_code = int(str(document["exit_code"]))


class WaitTimeout(BalloonError):
    """A wait with a time limit ran into it."""

    exit_code = 124


class RuleBroken(BalloonError):
    """A driver, a device or a locking design broke a rule: a verdict, not an accident."""

    exit_code = 3


class Deadlock(RuleBroken):
    """Tasks wait for each other in a circle.

    Attributes:
        report: the circle as `balloonvq.counters.DeadlockReport` builds it.
    """

    def __init__(
        self, what: str, *, report: dict[str, object] | None = None, why: str = "", hint: str = ""
    ) -> None:
        super().__init__(what, why=why, hint=hint)
        self.report = report


class KernelBug(RuleBroken):
    """The guest kernel reached a BUG()."""


class LostData(RuleBroken):
    """A page of a guest task no longer holds what the task wrote."""


class DeviceBroken(RuleBroken):
    """The device met a ring it cannot go on with (DEVICE_NEEDS_RESET)."""


class InternalError(BalloonError):
    """A bug of balloonctl itself."""
