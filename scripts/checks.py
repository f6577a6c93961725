"""Runs the project's checks: `python scripts/checks.py all | lint | test | docs | PART ...`.

Each part is a few commands. While one runs its output goes to a log; what is
printed is one line for each part, the whole log of those that failed, and at
the end the sum as `N passed, N failed, N skipped`. A lint counts as one test.

`make test` and `make check` call this after having set the environment up.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("BUILD", ROOT / "build"))
JOBS = str(os.cpu_count() or 1)
CLANGS = ("clang", *(f"clang-{version}" for version in range(24, 13, -1)))

#: Runs of each fuzzer over its corpus and beyond; enough to notice a broken target, not to find a rare bug.
FUZZ_RUNS = 20_000
FUZZ_SECONDS = 20


@dataclass
class Result:
    """What a part came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""


@dataclass
class Log:
    """Runs commands and keeps what they print."""

    name: str
    lines: list[str] = field(default_factory=list)

    def run(self, *command: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
        """The exit code and the output of a command."""
        words = [str(word) for word in command]
        self.lines.append(f"$ {' '.join(words)}")
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        self.lines.append(done.stdout.rstrip())
        if done.returncode:
            self.lines.append(f"exit code {done.returncode}")
        return done.returncode, done.stdout


def single(log: Log, *command: str | Path) -> Result:
    """A command that passes or fails as a whole."""
    code, _ = log.run(*command)
    return Result(failed=1) if code else Result(passed=1)


def c_files() -> list[Path]:
    """All C sources and headers."""
    folders = ROOT / "csrc", ROOT / "vq"
    files = (path for folder in folders for path in folder.rglob("*.[ch]"))
    return sorted(path for path in files if path.name != "balloonvq.csrc.c")


def format_c(log: Log) -> Result:
    """clang-format over all C."""
    return single(log, "clang-format", "--dry-run", "-Werror", *c_files())


def format_python(log: Log) -> Result:
    """Ruff's formatter."""
    return single(log, "ruff", "format", "--check", ".")


def ruff(log: Log) -> Result:
    """Ruff's rules."""
    return single(log, "ruff", "check", ".")


def mypy(log: Log) -> Result:
    """Types, strictly."""
    return single(log, "mypy")


def c_tests(log: Log, folder: str, sanitize: str, env: dict[str, str]) -> Result:
    """The C tests under a sanitizer, warnings being errors."""
    build = BUILD / folder
    code, _ = log.run(
        "cmake",
        "-S",
        "csrc",
        "-B",
        build,
        "-DBALLOONVQ_PYTHON=OFF",
        "-DBALLOONVQ_TESTS=ON",
        "-DBALLOONVQ_WERROR=ON",
        f"-DBALLOONVQ_SANITIZE={sanitize}",
    )
    if not code:
        code, _ = log.run("cmake", "--build", build, "--parallel", JOBS)
    if code:
        return Result(failed=1, note="did not build")
    code, output = log.run(
        "ctest", "--test-dir", build, "--output-on-failure", "--no-tests=error", "--timeout", "300", env=env
    )
    total = int(found[1]) if (found := re.search(r"tests failed out of (\d+)", output)) else 0
    failed = int(found[1]) if (found := re.search(r"(\d+) tests failed out of", output)) else 1
    skipped = len(re.findall(r"\*\*\*Skipped", output))
    return Result(total - failed - skipped, failed or int(code != 0), skipped)


def c_asan(log: Log) -> Result:
    """The C tests under AddressSanitizer and UndefinedBehaviorSanitizer."""
    options = {
        "ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    return c_tests(log, "asan", "address,undefined", options)


def c_tsan(log: Log) -> Result:
    """The C tests under ThreadSanitizer."""
    return c_tests(log, "tsan", "thread", {"TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"})


def fuzz(log: Log) -> Result:
    """Each fuzzer over its corpus and a bounded number of fresh inputs."""
    if not any((ROOT / "csrc/fuzz").glob("*.c")):
        return Result(skipped=1, note="there are no fuzzers")
    clang = next(filter(None, map(shutil.which, CLANGS)), None)
    if clang is None:
        return Result(skipped=1, note="no clang on this machine: apt install clang libclang-rt-14-dev")
    build = BUILD / "fuzz"
    code, _ = log.run(
        "cmake",
        "-S",
        "csrc",
        "-B",
        build,
        f"-DCMAKE_C_COMPILER={clang}",
        "-DBALLOONVQ_PYTHON=OFF",
        "-DBALLOONVQ_FUZZERS=ON",
        "-DBALLOONVQ_SANITIZE=address,undefined",
    )
    if not code:
        code, _ = log.run("cmake", "--build", build, "--parallel", JOBS)
    fuzzers = sorted(
        path
        for path in build.rglob("fuzz_*")
        if path.is_file() and not path.suffix and os.access(path, os.X_OK)
    )
    if code or not fuzzers:
        return Result(failed=1, note="did not build")
    result = Result(note=f"{FUZZ_RUNS} runs or {FUZZ_SECONDS} s each")
    for fuzzer in fuzzers:
        found = BUILD / "fuzz-found" / fuzzer.name
        found.mkdir(parents=True, exist_ok=True)
        kept = [
            folder
            for folder in (
                ROOT / "csrc/fuzz/corpus" / fuzzer.name,
                ROOT / "csrc/fuzz/corpus" / fuzzer.name[5:],
            )
            if folder.is_dir()
        ]
        code, _ = log.run(
            fuzzer,
            "-seed=1",
            f"-runs={FUZZ_RUNS}",
            f"-max_total_time={FUZZ_SECONDS}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=0",
            found,
            *kept,
        )
        if code:
            result.failed += 1
        else:
            result.passed += 1
    return result


def pytest_run(log: Log, marks: str, *options: str) -> Result:
    """The Python tests that the marks select."""
    code, output = log.run(sys.executable, "-m", "pytest", "-q", "-m", marks, *options)
    last = output.rstrip().rpartition("\n")[2]
    counts = {
        word: int(number)
        for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed)", last)
    }
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    if code not in {0, 5}:
        failed = failed or 1
    return Result(counts.get("passed", 0) + counts.get("xfailed", 0), failed, counts.get("skipped", 0))


def pytest_parallel(log: Log) -> Result:
    """The tests that may run side by side."""
    return pytest_run(log, "not stress and not terminal", "-n", "2", "--dist", "worksteal")


def pytest_alone(log: Log) -> Result:
    """The tests that measure time, load the machine or drive a terminal: one after the other."""
    return pytest_run(log, "stress or terminal")


def docs(log: Log) -> Result:
    """The documentation; a warning is an error."""
    return single(
        log, sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", BUILD / "docs"
    )


PARTS: dict[str, tuple[str, Callable[[Log], Result]]] = {
    "format": ("format, Python", format_python),
    "ruff": ("ruff", ruff),
    "mypy": ("mypy --strict", mypy),
    "clang-format": ("format, C", format_c),
    "asan": ("C tests, ASan + UBSan", c_asan),
    "tsan": ("C tests, TSan", c_tsan),
    "fuzz": ("fuzzers, bounded", fuzz),
    "pytest": ("pytest", pytest_parallel),
    "pytest-alone": ("pytest, timed and terminal", pytest_alone),
    "docs": ("docs, warnings are errors", docs),
}
GROUPS = {
    "all": list(PARTS),
    "lint": ["format", "ruff", "mypy", "clang-format"],
    "test": ["asan", "tsan", "fuzz", "pytest", "pytest-alone"],
}


def main(arguments: list[str]) -> int:
    """Runs the parts that are named; 1 if any failed."""
    names = [part for name in arguments or ["all"] for part in GROUPS.get(name, [name])]
    if unknown := [name for name in names if name not in PARTS]:
        print(f"error: no such part: {', '.join(unknown)}", file=sys.stderr)
        print(f"hint: one of {', '.join([*GROUPS, *PARTS])}", file=sys.stderr)
        return 2
    logs = BUILD / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    total = Result()
    for name in names:
        title, part = PARTS[name]
        log = Log(name)
        begin = time.monotonic()
        result = part(log)
        seconds = time.monotonic() - begin
        text = "\n".join(log.lines) + "\n"
        (logs / f"{name}.log").write_text(text)
        if result.failed:
            print(text)
        sign = "FAILED" if result.failed else "ok" if result.passed else "skipped"
        counts = f"{result.passed} passed, {result.failed} failed, {result.skipped} skipped"
        note = f"  ({result.note})" if result.note else ""
        print(f"{sign:8}{title:28}{counts:36}{seconds:6.1f} s{note}", flush=True)
        total.passed += result.passed
        total.failed += result.failed
        total.skipped += result.skipped
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
