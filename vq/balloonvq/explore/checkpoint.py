r"""A search on disk: what was looked at so far, to go on from.

The file is one line of JSON, then the states of all layers, each as the same number of bytes, little
end first. Nothing in it is executed: local states and values are not stored, but the order in which
they got their numbers, and the code is run in that order again. So a file is of use only with the
program that wrote it, which is checked three times: by name, by a digest of all sources and of what
reads local states in C (`identity`), and by what the numbers mean once they are given again.

====================  ==================================================================================
member of the line    meaning
====================  ==================================================================================
format                ``balloonctl/checkpoint/1``
program               its name, as reports show it
identity              see `identity`
watched, spins        the world's facts
learned               see `Product.learned`
nodes, values         how many local states each actor has, and values each object
meaning               SHA-256 of what they are
widths                bits of each field of a state
layers                how many states each layer has
transitions           steps looked at
state_bytes           bytes of one state
body                  SHA-256 of the states
====================  ==================================================================================

A file is written beside its place and moved there, so that there is always a whole one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import balloonvq
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.explore import _local_state
from balloonvq.explore.search import Layer
from balloonvq.explore.world import Nondeterminism, Program
from balloonvq.files import written_whole

if TYPE_CHECKING:
    from balloonvq.explore.search import Search
    from balloonvq.explore.tables import Product

__all__ = ["Checkpoint", "check_place", "identity", "read", "write"]

FORMAT = "balloonctl/checkpoint/1"

#: Longest first line that is read; larger than any search that fits in memory writes.
LINE_MAX = 1 << 28

#: Parts of balloonvq that a verdict depends on.
_PARTS = ("driver", "explore", "guest", "runtime")


def identity(program: Program, *sources: Path) -> str:
    """A digest of all that a search depends on.

    Args:
        program: its name and bounds count.
        sources: files beside balloonvq's own, as that of a user's design.
    """
    digest = hashlib.sha256(f"{program.name} {program.bounds} {sorted(program.statistics)}".encode())
    home = Path(balloonvq.__file__).parent
    own = sorted(path for part in _PARTS for path in (home / part).rglob("*.py"))
    for path in (*own, Path(_local_state.__file__ or ""), *sources):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Checkpoint:
    """A file that was read and is whole.

    Attributes:
        path: where it is.
        head: the line.
        body: the states.
    """

    def __init__(self, path: Path, head: dict[str, Any], body: bytes) -> None:
        self.path = path
        self.head = head
        self.body = body

    def check(self, program: Program, digest: str) -> None:
        """Refuses the file of another program.

        Raises:
            InvalidArgument: naming what changed.
        """
        if self.head["program"] != program.name:
            raise InvalidArgument(
                f"{self.path} is a search of another program",
                why=f"it is of {self.head['program']}, and this is {program.name}",
                hint="--resume goes on with the same design, options and scenario",
            )
        if self.head["identity"] != digest:
            raise InvalidArgument(
                f"{program.name} has changed since {self.path} was written",
                why="the design's file, the scenario or balloonvq itself is another one, and so may be the verdict",
                hint="explore it again from the start, without --resume",
            )

    def prepare(self, product: Product) -> None:
        """Gives local states and values the numbers that they had.

        Raises:
            InvalidArgument: if that is not possible.
            Revised: start again; the world knows one more fact.
        """
        head, world = self.head, product.world
        try:
            world.spins = world.spins or head["spins"]
            for index in head["watched"]:
                world.objects[index].watched = True
                for operation in world.objects[index].operations.values():
                    operation.visible = operation.visible or operation.writes
            product.learn_again(head["learned"])
            if len(head["nodes"]) != product.count or len(head["values"]) != len(world.objects):
                raise ValueError("other actors or objects")
            sizes = zip((*head["nodes"], *head["values"]), itertools.chain(*product.sizes()), strict=True)
            if any(not 0 <= count <= known for count, known in sizes):
                raise ValueError("more local states or values than there are")
            if (
                hashlib.sha256(product.meaning(head["nodes"], head["values"]).encode()).hexdigest()
                != head["meaning"]
            ):
                raise ValueError("the same steps lead to other states")
            if len(head["widths"]) != len(product.widths) or min(head["widths"]) < 1:
                raise ValueError("fields of another kind")
            product.widths = list(head["widths"])
            product.start()
            if product.widths != head["widths"]:
                raise ValueError("fields that are too narrow")
            self._check_states(product)
            product.kernel.read(self.body, head["state_bytes"])
            ends = itertools.accumulate(head["layers"])
            product.left = [Layer(end, size, 0) for end, size in zip(ends, head["layers"], strict=True)]
            product.left[-1] = product.left[-1]._replace(transitions=head["transitions"])
            product.forget()
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, Nondeterminism) as error:
            raise InvalidArgument(
                f"{self.path} does not fit {world.program.name}",
                why=str(error),
                hint="explore it again from the start, without --resume",
            ) from error

    def _check_states(self, product: Product) -> None:
        """Whether each field of each state is a number that means something."""
        limits = list(self.head["nodes"]) + [self.head["values"][index] for index in product.objects]
        size = self.head["state_bytes"]
        states = [
            int.from_bytes(self.body[at : at + size], "little") for at in range(0, len(self.body), size)
        ]
        if self.head["layers"][0] != 1 or states[0] != product.initial:
            raise ValueError("another first state")
        for shift, width, limit in zip(product.shifts, product.widths, limits, strict=True):
            mask = (1 << width) - 1
            if max({state >> shift & mask for state in states}) >= limit:
                raise ValueError("a state that cannot be")
        top = product.count if product.world.bounds.one_cpu else 0
        if max(states) >> product.bits > top:
            raise ValueError("a state that cannot be")


def write(path: Path, search: Search, digest: str) -> None:
    """Writes a search as it was after its last whole layer.

    Raises:
        BalloonError: if the file cannot be written.
    """
    product = search.product
    world = product.world
    nodes, values = product.sizes()
    body = product.kernel.written(search.layers[-1].end)
    head = {
        "format": FORMAT,
        "program": world.program.name,
        "identity": digest,
        "watched": [spec.index for spec in world.objects if spec.watched],
        "spins": world.spins,
        "learned": [list(step) for step in product.learned],
        "nodes": nodes,
        "values": values,
        "meaning": hashlib.sha256(product.meaning(nodes, values).encode()).hexdigest(),
        "widths": product.widths,
        "layers": [layer.size for layer in search.layers],
        "transitions": search.layers[-1].transitions,
        "state_bytes": product.kernel.state_bytes,
        "body": hashlib.sha256(body).hexdigest(),
    }
    try:
        with written_whole(path) as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.write(body)
    except OSError as error:
        raise BalloonError(f"cannot write the checkpoint {path}", why=error.strerror or str(error)) from error


def check_place(path: Path) -> None:
    """Finds out before a search whether it could be kept there.

    Raises:
        BalloonError: if it could not.
    """
    why = ""
    if path.exists() and not path.is_file():
        why = "it is no regular file"
    elif not path.parent.is_dir():
        why = f"there is no folder {path.parent}"
    elif not os.access(path.parent, os.W_OK):
        why = f"nothing can be written in {path.parent}"
    if why:
        raise BalloonError(f"cannot write the checkpoint {path}", why=why)


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        BalloonError: if it cannot be read.
        InvalidArgument: if it is none, of another format, or damaged.
    """
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device may have no end
                raise InvalidArgument(f"{path} is no checkpoint", why="it is no regular file")
            line = file.readline(LINE_MAX)
            body = file.read()
    except OSError as error:
        raise BalloonError(f"cannot read the checkpoint {path}", why=error.strerror or str(error)) from error
    try:
        head = json.loads(line)
        name = head["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidArgument(
            f"{path} is no checkpoint", why="it does not begin as one", hint="--checkpoint FILE writes one"
        ) from error
    if name != FORMAT:
        raise InvalidArgument(
            f"{path} was written by another version of balloonctl",
            why=f"its format is {name}, and this version reads {FORMAT}",
            hint="explore it again from the start, without --resume",
        )
    try:
        size, layers = _count(head["state_bytes"], 4096), [_count(count) for count in head["layers"]]
        _well_formed(head)
        if sum(layers) * size != len(body) or not layers or hashlib.sha256(body).hexdigest() != head["body"]:
            raise ValueError("it is cut off, or bytes of it have changed")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(
            f"{path} is damaged", why=str(error), hint="explore it again from the start, without --resume"
        ) from error
    return Checkpoint(path, head, body)


def _count(value: object, most: int = 1 << 40) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{value!r} is no count")
    return value


def _well_formed(head: dict[str, Any]) -> None:
    """Whether the members have the types that they should have."""
    for name in ("program", "identity", "meaning", "body"):
        if not isinstance(head[name], str):
            raise TypeError(f"{name} is no text")
    rows = [head[name] for name in ("watched", "nodes", "values", "widths")]
    for row in (*rows, *head["learned"], [head["transitions"]]):
        if not isinstance(row, list) or not all(type(item) is int and -1 <= item < 1 << 40 for item in row):
            raise ValueError("a list is no list of numbers")
    if type(head["spins"]) is not bool or any(index < 0 for index in head["watched"]):
        raise ValueError("a fact that is none")
    if any(len(step) < 2 for step in head["learned"]) or max(head["widths"], default=0) > 64:
        raise ValueError("a step that is none")
