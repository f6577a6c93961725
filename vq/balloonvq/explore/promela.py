"""The learned automata as a Promela model, for SPIN to judge the same thing independently.

After a complete search the tables of engine P *are* the program. The export writes one
process that is a single ``do`` loop with an option for each table entry::

    :: d_step { n0 == 3 && o2 == 0 -> n0 = 4; o2 = 1 }

``n`` are the actors' local states, ``o`` the numbers of the objects' values. An
option is one transition and ``d_step`` stores no state in between, so

    states stored by SPIN == states of engine P

for every program without a bug (compile with ``-DNOREDUCE``; with a bug both stop early,
and only the verdicts are compared). A deadlock is an assertion in the option that is taken on
``timeout`` with an actor neither finished nor idle; an actor's error is an assertion in the step
that raises it. SPIN gets the operations' effects from us, so what it checks is the
search, not the operations; those are checked by engines N and D.

Not exported: timers (time's step looks at all actors at once), state invariants, livelocks.
"""

from __future__ import annotations

from itertools import product as combinations

from balloonvq.errors import InvalidArgument
from balloonvq.explore.product import started
from balloonvq.explore.search import Limits, Search
from balloonvq.explore.tables import Product, Special
from balloonvq.explore.verdict import Findings
from balloonvq.explore.world import Program

__all__ = ["export"]


def export(program: Program, limits: Limits = Limits()) -> str:  # noqa: B008 - immutable
    """A Promela model of the program.

    Raises:
        InvalidArgument: if the program has timers or is too big.
    """
    text: str = started(program, lambda product: _export(product, limits))
    return text


def _export(product: Product, limits: Limits) -> str:
    search = Search(product, limits, gather=Findings())
    search.run()
    if search.stopped:
        raise InvalidArgument(f"{product.world.program.name} is too big to be exported", why=search.stopped)
    if product.has_timers:
        raise InvalidArgument(f"{product.world.program.name} has timers, which are not exported")
    product.fill()
    nodes = product.nodes(product.initial)
    names = ", ".join(actor.name for actor in product.world.actors)
    lines = [f"/* {product.world.program.name}: actors {names} */"]
    lines += [f"int n{actor} = {node};" for actor, node in enumerate(nodes)]
    lines += [f"int o{index} = {_field(product, product.initial, index)};" for index in product.objects]
    lines += ["", "active proctype program()", "{", "end:", "\tdo"]
    for actor in range(product.count):
        for table in product.tables[actor]:
            for key, entry in table.items():
                lines += _options(product, actor, key, entry)
    stuck = " || ".join(_stuck(product, actor) for actor in range(product.count))
    lines.append(f"\t:: timeout && !({_excused(product)}) && ({stuck}) -> assert(false)")
    lines += ["\tod", "}", ""]
    return "\n".join(lines)


def _field(product: Product, state: int, index: int) -> int:
    return (state >> product.object_shift[index]) & product.object_mask[index]


def _options(product: Product, actor: int, key: int, entry: int | Special) -> list[str]:
    moves = entry.moves if isinstance(entry, Special) else (((actor, 0), entry),) if entry else ()
    node = (key >> product.actor_shift[actor]) & product.actor_mask[actor]
    mask = product.masks[actor][node]
    touched = [
        index for index in product.objects if mask >> product.object_shift[index] & product.object_mask[index]
    ]
    guard = " && ".join([f"n{actor} == {node}", *(f"o{i} == {_field(product, key, i)}" for i in touched)])
    found = []
    for _, difference in moves:
        target = key ^ difference
        after = (target >> product.actor_shift[actor]) & product.actor_mask[actor]
        effects = [f"n{actor} = {after}"]
        effects += [
            f"o{i} = {_field(product, target, i)}"
            for i in touched
            if _field(product, target, i) != _field(product, key, i)
        ]
        if product.automata[actor].nodes[after].error is not None:
            effects.append("assert(false)")
        found.append(f"\t:: d_step {{ {guard} -> {'; '.join(effects)} }}")
    return found


def _stuck(product: Product, actor: int) -> str:
    if product.world.actors[actor].daemon:
        return "false"
    fine = [
        node.index for node in product.automata[actor].nodes if node.operation is None or node.operation.idle
    ]
    return f"!({' || '.join(f'n{actor} == {node}' for node in fine) or 'false'})"


def _excused(product: Product) -> str:
    """The values of objects with which waiting for ever is nobody's mistake."""
    found = [
        " && ".join(
            f"o{index} == {product.number(index, value)}"
            for index, value in zip(objects, values, strict=True)
        )
        for predicate, objects in product.world.excuses
        for values in combinations(*(product.known_values(index) for index in objects))
        if predicate(*values)
    ]
    return " || ".join(found) or "false"
