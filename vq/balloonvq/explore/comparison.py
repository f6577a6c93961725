"""Real executions, compared with the tables operation by operation: random ones, and schedules that were found."""

from __future__ import annotations

import contextlib
import random
from typing import Final

from balloonvq.explore.tables import Enough, Product
from balloonvq.explore.world import FROM_RUNTIME, Nondeterminism
from balloonvq.runtime.controlled import Decision
from balloonvq.runtime.execution import Execution

__all__ = ["compare", "confirm", "sample"]


def confirm(product: Product, decisions: tuple[Decision, ...]) -> int:
    """Executes a schedule for real and compares each operation with the tables; operations compared.

    Raises:
        Nondeterminism: at the first difference.
    """
    queue = list(decisions)

    def strategy(found: list[Decision], execution: Execution) -> Decision:
        if not queue:
            raise Enough
        wanted = queue.pop(0)
        if wanted not in execution.possible(found):
            raise Nondeterminism(
                f"step {execution.steps + 1}, {wanted}, is not possible in the real execution",
                hint=FROM_RUNTIME,
            )
        return wanted

    execution = Execution(product.world, strategy, places=True)
    with contextlib.suppress(Enough):
        execution.run()
    return compare(product, execution)


def compare(product: Product, execution: Execution) -> int:
    """Compares the log of a real execution with the automata; operations compared.

    Raises:
        Nondeterminism: at the first difference.
    """
    at = [0] * product.count
    numbers = product.first_numbers()
    assert execution.log is not None
    assert execution.places is not None
    for (actor, operation, observed, _, after), place, users_place in zip(
        execution.log, execution.places, execution.users_places, strict=True
    ):
        if operation is None:
            numbers = product.tick(numbers) or numbers
            continue
        automaton = product.automata[actor]
        node = automaton.nodes[at[actor]]
        if node.operation is not operation or node.place != place:
            raise automaton.differs(node, operation, place, users_place)
        index = operation.object
        effect = product.perform(actor, at[actor], numbers[index], observed if operation.options else 0)
        if (
            effect is None
            or effect.observed != observed
            or product.known_values(index)[effect.after] != after
        ):
            raise automaton.differs(node, operation, place, users_place)
        at[actor] = effect.following
        numbers[index] = effect.after
    for automaton, last, one in zip(product.automata, at, execution.actors, strict=True):
        if one.finished:
            automaton.compare_end(last, one.error)
        elif automaton.nodes[last].operation is not one.pending:
            raise automaton.differs(automaton.nodes[last], one.pending, one.where, one.users_where)
    return len(execution.log)


#: Length at which a random execution has said enough; a program that never ends has no other.
SAMPLE_STEPS: Final = 500


#: How many random executions there are at least and at most, and with how many operations they have said enough.
SAMPLES_MIN: Final = 3
SAMPLES_MAX: Final = 10
SAMPLE_OPERATIONS: Final = 250


def sample(product: Product, seed: int = 0) -> int:
    """Random executions of all actors together, each operation compared; operations compared.

    Of a short program there are more than of a long one.
    """
    random_ = random.Random(seed)
    compared = 0

    def strategy(found: list[Decision], execution: Execution) -> Decision:
        if execution.steps >= SAMPLE_STEPS:
            raise Enough
        return found[int(random_.random() * len(found))]

    for executions in range(SAMPLES_MAX):
        if executions >= SAMPLES_MIN and compared >= SAMPLE_OPERATIONS:
            break
        execution = Execution(product.world, strategy, places=True)
        with contextlib.suppress(Enough):
            execution.run()
        compared += compare(product, execution)
        product.longest = max(product.longest, execution.steps)
    return compared
