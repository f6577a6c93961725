"""A search that was left goes on where it was, and comes to the same verdict with the same counts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from balloonvq.driver.designs import find
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.explore import _local_state, checkpoint, product
from balloonvq.explore.automaton import Automaton
from balloonvq.explore.kernel import Kernel
from balloonvq.explore.product import Keeping
from balloonvq.explore.programs import generate
from balloonvq.explore.scenarios import SCENARIOS, program
from balloonvq.explore.search import Limits
from balloonvq.explore.tables import Product
from balloonvq.explore.verdict import Outcome
from balloonvq.explore.world import Bounds, Program, World

#: (design, scenario): proved, a bug in a state, a livelock, one processor, timers.
CASES = [
    ("reference", "oom-while-filling"),
    ("split", "compaction-while-filling"),
    ("shrinker", "oom-while-filling"),
    ("upstream", "one-cpu-filling"),
    ("coarse", "actual-while-leaking"),
]


def explored(design: str, scenario: str) -> Program:
    return program(find(design), SCENARIOS[scenario])


def told(verdict):
    return (verdict.outcome, verdict.states, verdict.transitions, verdict.layers, verdict.bug)


def in_parts(what: Program, file: Path, step: int):
    """Explores with ever larger limits, each time from the file of the last; (verdict, parts)."""
    digest = checkpoint.identity(what)
    states, parts, resume = step, 0, None
    while True:
        parts += 1
        verdict = product.explore(what, Limits(states=states), keeping=Keeping(digest, file, resume))
        if verdict.outcome is not Outcome.INCOMPLETE:
            return verdict, parts
        resume = checkpoint.read(file)
        states = verdict.states + step


@pytest.mark.parametrize(("design", "scenario"), CASES)
def test_a_search_in_parts_comes_to_the_verdict_of_one(tmp_path, design, scenario) -> None:
    whole = product.explore(explored(design, scenario))
    verdict, parts = in_parts(explored(design, scenario), tmp_path / "search", max(20, whole.states // 4))
    assert told(verdict) == told(whole)
    assert parts > 1


@pytest.mark.parametrize(
    "bounds", [Bounds(), Bounds(all_ops=True), Bounds(explore_time=True), Bounds(one_cpu=True)]
)
def test_random_programs_in_parts(tmp_path, bounds) -> None:
    parts = 0
    for seed in range(15):
        whole = product.explore(generate(seed, bounds))
        verdict, count = in_parts(generate(seed, bounds), tmp_path / str(seed), 10)
        assert told(verdict) == told(whole), seed
        parts += count - 1
    assert parts > 10


def test_a_search_whose_fields_grow_comes_to_the_verdict_of_one_with_room(monkeypatch) -> None:
    programs = [explored(*case) for case in CASES] + [generate(seed) for seed in range(15)]
    roomy = [told(product.explore(what)) for what in programs]
    grown = []
    grow = Product.grow

    def narrow(self: Product) -> None:
        nodes, values = self.sizes()
        sizes = nodes + [values[index] for index in self.objects]
        self.widths = [max(1, (size - 1).bit_length()) for size in sizes]
        self.start()

    def grow_and_tell(self: Product) -> None:
        before = self.widths
        grow(self)
        grown.append(bool(self.left))
        assert all(map(int.__le__, before, self.widths))
        assert before != self.widths

    monkeypatch.setattr(Product, "narrow", narrow)
    monkeypatch.setattr(Product, "grow", grow_and_tell)
    assert [told(product.explore(what)) for what in programs] == roomy
    assert sum(grown) > 10


@pytest.fixture
def left(tmp_path) -> Path:
    """The file of a search that was given up."""
    what = explored(*CASES[0])
    file = tmp_path / "search"
    keeping = Keeping(checkpoint.identity(what), file, None)
    assert product.explore(what, Limits(states=500), keeping=keeping).outcome is Outcome.INCOMPLETE
    return file


def test_nothing_is_kept_of_a_search_that_ends_before_it_has_begun(monkeypatch, tmp_path) -> None:
    def begin(self: Kernel, state: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Kernel, "begin", begin)
    what, file = explored(*CASES[0]), tmp_path / "search"
    with pytest.raises(KeyboardInterrupt):
        product.explore(what, keeping=Keeping(checkpoint.identity(what), file, None))
    assert not file.exists()


def go_on(file: Path, what: Program | None = None, digest: str | None = None):
    what = what or explored(*CASES[0])
    keeping = Keeping(checkpoint.identity(what) if digest is None else digest, None, checkpoint.read(file))
    return product.explore(what, keeping=keeping)


def test_another_program_is_refused_by_name(left) -> None:
    other = explored("modern", CASES[0][1])
    with pytest.raises(InvalidArgument, match="another program") as caught:
        go_on(left, other)
    assert CASES[0][0] in caught.value.why
    assert "modern" in caught.value.why


def test_a_changed_design_is_refused_by_name(left) -> None:
    with pytest.raises(InvalidArgument, match=f"{CASES[0][0]}.* has changed since"):
        go_on(left, digest="0" * 64)


def test_the_file_of_a_design_is_part_of_what_is_explored(tmp_path) -> None:
    what, own = explored(*CASES[0]), tmp_path / "mine.py"
    own.write_text("one = 1\n")
    before = checkpoint.identity(what, own)
    own.write_text("one = 2\n")
    assert len({before, checkpoint.identity(what, own), checkpoint.identity(what)}) == 3


def test_what_reads_local_states_in_c_is_part_of_what_is_explored(monkeypatch, tmp_path) -> None:
    what, other = explored(*CASES[0]), tmp_path / Path(_local_state.__file__).name
    other.write_bytes(Path(_local_state.__file__).read_bytes())
    before = checkpoint.identity(what)
    monkeypatch.setattr(_local_state, "__file__", str(other))
    assert checkpoint.identity(what) == before
    other.write_bytes(b"")
    assert checkpoint.identity(what) != before


def edited(file: Path, **members: object) -> None:
    """The same file with other members in its line."""
    line, _, body = file.read_bytes().partition(b"\n")
    file.write_bytes(json.dumps(json.loads(line) | members).encode() + b"\n" + body)


def test_every_cut_off_file_is_refused(left) -> None:
    whole = left.read_bytes()
    for size in (0, 1, 100, whole.index(b"\n"), whole.index(b"\n") + 1, len(whole) - 1):
        left.write_bytes(whole[:size])
        with pytest.raises(InvalidArgument):
            checkpoint.read(left)


def test_a_changed_byte_is_found(left) -> None:
    whole = bytearray(left.read_bytes())
    whole[-5] ^= 1
    left.write_bytes(whole)
    with pytest.raises(InvalidArgument, match="damaged"):
        checkpoint.read(left)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b"\x80\x04\x95pickle.\n",
        b"[" * 100_000,
        b'{"format": 7}\n',
        b"\xff\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"no checkpoint|another version"):
        checkpoint.read(file)
    with pytest.raises(BalloonError, match="cannot read") as missing:
        checkpoint.read(tmp_path / "nothing")
    assert missing.value.exit_code == 1


def test_a_device_is_no_checkpoint() -> None:
    with pytest.raises(InvalidArgument, match="no checkpoint") as refused:
        checkpoint.read(Path("/dev/zero"))
    assert refused.value.why == "it is no regular file"


def test_a_place_that_cannot_keep_one_is_refused_before_the_search(tmp_path) -> None:
    checkpoint.check_place(tmp_path / "new")
    (tmp_path / "old").touch()
    checkpoint.check_place(tmp_path / "old")
    for path, why in (
        (tmp_path / "no" / "file", "no folder"),
        (tmp_path, "no regular file"),
        (Path("/dev/full"), "no regular file"),
    ):
        with pytest.raises(BalloonError, match="cannot write the checkpoint") as refused:
            checkpoint.check_place(path)
        assert why in str(refused.value.why)
        assert refused.value.exit_code == 1


def test_another_version_is_refused(left) -> None:
    edited(left, format="balloonctl/checkpoint/9")
    with pytest.raises(InvalidArgument, match="another version"):
        checkpoint.read(left)


@pytest.mark.parametrize(
    "members",
    [
        {"learned": [[0, 0, 0, 0], [9, 9, 9, 9]]},
        {"learned": [[0, 10**9, 0, 0]]},
        {"learned": [[-1, 0]]},
        {"learned": []},
        {"learned": {}},
        {"learned": [[0, "0", 0, 0]]},
        {"learned": [[0, 0, 0, 0, 0]]},
        {"watched": [10**6]},
        {"watched": [-1]},
        {"spins": 1},
        {"nodes": [1]},
        {"nodes": [10**6] * 4},
        {"values": []},
        {"widths": [1]},
        {"widths": [10**9]},
        {"layers": [1, 2]},
        {"layers": []},
        {"layers": [-1]},
        {"layers": None},
        {"state_bytes": 0},
        {"state_bytes": 10**9},
        {"transitions": "many"},
        {"meaning": "0" * 64},
        {"body": 5},
    ],
    ids=str,
)
def test_a_forged_file_is_an_error_and_no_verdict(left, members) -> None:
    edited(left, **members)
    with pytest.raises(InvalidArgument):
        go_on(left)


def test_fields_without_room_for_what_was_known_are_an_error(left) -> None:
    edited(left, widths=[1] * len(json.loads(left.read_bytes().partition(b"\n")[0])["widths"]))
    with pytest.raises(InvalidArgument, match="does not fit") as caught:
        go_on(left)
    assert "too narrow" in caught.value.why


def test_states_that_cannot_be_are_found(left) -> None:
    import hashlib

    line, _, body = left.read_bytes().partition(b"\n")
    head = json.loads(line)
    wrong = body[: -head["state_bytes"]] + b"\xff" * (head["state_bytes"] - 1) + b"\0"
    left.write_bytes(line + b"\n" + wrong)
    edited(left, body=hashlib.sha256(wrong).hexdigest())
    with pytest.raises(InvalidArgument, match="does not fit"):
        go_on(left)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path) -> None:
    what = explored(*CASES[0])
    keeping = Keeping(checkpoint.identity(what), tmp_path / "no folder" / "search", None)
    with pytest.raises(BalloonError, match="cannot write the checkpoint"):
        product.explore(what, Limits(states=100), keeping=keeping)


def test_what_unwinds_after_ctrl_c_is_no_step_of_the_actor() -> None:
    """Or a file that is kept then has local states in it that no run leads to."""

    def build(runtime) -> None:
        lock = runtime.mutex("lock")
        word = runtime.shared("word")

        def actor() -> None:
            with lock:
                word.value = 1
                raise KeyboardInterrupt

        runtime.spawn("W", "is interrupted", actor)

    automaton = Automaton(World(Program("interrupted", build, Bounds(all_ops=True))), 0)
    node = automaton.step(0, None)
    with pytest.raises(KeyboardInterrupt):
        automaton.step(node, None)
    assert [one.operation.kind for one in automaton.nodes] == ["lock", "write"]
    automaton.close()


def test_an_interrupt_behind_a_layer_counts_none_of_it_twice(tmp_path) -> None:
    what = explored("modern", "compaction-while-filling")
    file = tmp_path / "search"
    layers = 0

    def interrupt(progress) -> None:
        nonlocal layers
        layers += 1
        if layers == 20:
            raise KeyboardInterrupt

    digest = checkpoint.identity(what)
    with pytest.raises(KeyboardInterrupt):
        product.explore(what, on_layer=interrupt, keeping=Keeping(digest, file, None))
    resumed = product.explore(what, keeping=Keeping(digest, None, checkpoint.read(file)))
    whole = product.explore(what)
    assert (resumed.states, resumed.transitions) == (whole.states, whole.transitions)


#: The command, which keeps a search from its first layers on.
COMMAND = "from balloonvq.explore import search; search.SAVE_S = 0; from balloonctl.main import run; run()"


def test_ctrl_c_leaves_a_file_to_go_on_from(tmp_path) -> None:
    file = tmp_path / "search"
    arguments = ["explore", "reference", "--scenario", "fill+oom+compaction+user"]
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments, "--checkpoint", str(file)], stdout=subprocess.DEVNULL
    ) as child:
        while not file.exists() and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.wait(30) == 130
    assert checkpoint.read(file).head["program"].endswith("fill+oom+compaction+user")
    told_of = []
    for more in ([], ["--resume", str(file)]):
        command = [sys.executable, "-m", "balloonctl", *arguments, "--json", *more]
        (found,) = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)[
            "results"
        ]
        told_of.append((found["verdict"], found["states"], found["transitions"]))
    assert told_of[0] == told_of[1]
    assert told_of[0][0] == "PROVED"


def test_ctrl_c_behind_the_search_keeps_it_too(tmp_path, monkeypatch) -> None:
    from balloonvq.explore import liveness

    def interrupted(_search: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "search"
    program = explored("reference", "oom-while-filling")
    with monkeypatch.context() as patched:
        patched.setattr(liveness, "livelock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            product.explore(program, keeping=Keeping("x", file, None))
    whole = product.explore(program)
    kept = checkpoint.read(file)
    resumed = product.explore(program, keeping=Keeping("x", file, kept))
    assert (resumed.outcome, resumed.states, resumed.transitions) == (
        whole.outcome,
        whole.states,
        whole.transitions,
    )
