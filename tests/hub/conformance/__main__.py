"""Run the clients' own tests against the loopback Hub: ``make hub-conformance``.

The tests of the installed versions of huggingface_hub and datasets are taken from their sdists,
by pip, into a folder outside of this repository; nothing of theirs is kept. What asks for parts
of the Hub that the project does not use is out of scope, by the list in ``out_of_scope.txt``.
Prints passed, out of scope, failed; the exit status is 1 where anything failed unexplained.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

from ..server import LoopbackHub

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
# Accounts and tokens by which their tests go about.
PEOPLE = (
    ("__DUMMY_HUB_USER__", "hf_HubCITokenXXXXXXXXXXXXXXXXXXXXX"),
    ("DVUser", "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"),
    ("__DUMMY_TRANSFORMERS_USER__", "hf_conformance"),
)


@dataclass(frozen=True)
class Suite:
    """Tests of one package: which files, and what is laid beside them."""

    package: str
    files: tuple[str, ...]
    support: tuple[tuple[str, str], ...]  # (file here, its place among their tests)


SUITES = (
    Suite(
        "huggingface_hub",
        (
            "test_hf_api.py",
            "test_hf_file_system.py",
            "test_commit_scheduler.py",
            "test_file_download.py",
            "test_snapshot_download.py",
            "test_repocard.py",
            "test_lfs.py",
            "test_xet_upload.py",
            "test_upload_pipeline.py",
        ),
        (("support_huggingface_hub.py", "conftest.py"),),
    ),
    Suite(
        "datasets",
        ("test_upstream_hub.py", "test_hub.py"),
        (
            ("support_datasets.py", "conftest.py"),
            ("support_datasets_hub.py", "fixtures/hub.py"),
            ("support_datasets_utils.py", "utils.py"),
        ),
    ),
)


@dataclass(frozen=True)
class Result:
    """One test: `file::Class::name`, and how it went."""

    name: str
    outcome: str  # "passed", "skipped" or "failed"
    words: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    scope = read_scope(HERE / "out_of_scope.txt")
    bad = 0
    for suite in SUITES:
        if options.only in (None, suite.package):
            with tempfile.TemporaryDirectory(prefix="hub-conformance-") as place:
                tests = fetch(suite, Path(place))
                results = run(suite, tests, options.seconds, options.tests)
            bad += report(suite, results, scope)
    return 1 if bad else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hub.conformance", description=__doc__)
    parser.add_argument("--only", choices=[suite.package for suite in SUITES], help="one package")
    parser.add_argument("--tests", help="those whose names match, as pytest's -k takes them")
    parser.add_argument("--seconds", type=int, default=900, help="for each package, at most")
    return parser.parse_args(arguments)


def read_scope(path: Path) -> dict[str, str]:
    """Pattern of `package/file::Class::name` → why it is out of scope."""
    lines = (line.partition("  # ") for line in path.read_text(encoding="utf-8").splitlines())
    return {pattern.strip(): why.strip() for pattern, _, why in lines if pattern.strip()}


def fetch(suite: Suite, place: Path) -> Path:
    """The tests of the installed version, with what they need beside them."""
    wanted = f"{suite.package}=={version(suite.package)}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    plain = ["--no-binary", ":all:", "--no-build-isolation", "--dest", str(place), wanted]
    subprocess.run([*pip, *plain], check=True)
    [archive] = place.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(place, filter="data")
    [root] = [path for path in place.iterdir() if path.is_dir()]
    tests = place / "theirs" / "tests"
    shutil.copytree(root / "tests", tests)
    (tests / "__init__.py").touch()
    for name, target in suite.support:
        (tests / target).parent.mkdir(exist_ok=True)
        (tests / target).parent.joinpath("__init__.py").touch()
        shutil.copyfile(HERE / name, tests / target)
    return tests


def run(suite: Suite, tests: Path, seconds: int, only: str | None) -> list[Result]:
    """Their tests against a Hub of their own."""
    with LoopbackHub() as hub:
        for name, token in PEOPLE:
            who = hub.add_user(name, token=token, pro=True, orgs=["valid_org_hub"])
            who.fullname = "Dummy User"
        hub.store.users["valid_org_hub"].fullname = "Dummy Hub Org"
        point_at(tests, hub.url)
        report_file = tests.parent / "report.xml"
        environment = {**hub.env(tests.parent / "home"), "TMPDIR": str(tests.parent)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [
            "--continue-on-collection-errors",
            "-m",
            "not production",
            "-o",
            "junit_family=xunit1",
            "--tb=short",
        ]
        command += [f"--junitxml={report_file}", *(["-k", only] if only else [])]
        command += [f"tests/{name}" for name in suite.files if (tests / name).is_file()]
        try:
            subprocess.run(
                command,
                cwd=tests.parent,
                env=environment,
                timeout=seconds,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return [Result("*", "failed", f"took longer than {seconds} s; see --seconds, --tests")]
        return read_report(report_file)


def point_at(tests: Path, url: str) -> None:
    """Their constants name the Hub that they are to speak to."""
    constants = tests / "testing_constants.py"
    if constants.is_file():
        text = constants.read_text(encoding="utf-8")
        changed = re.sub(r'(ENDPOINT_STAGING = )"[^"]*"', rf'\1"{url}"', text)
        constants.write_text(changed, encoding="utf-8")


def read_report(path: Path) -> list[Result]:
    if not path.is_file():
        return [Result("*", "failed", "pytest could not start; run it by hand to see why")]
    return [read_case(case) for case in ElementTree.parse(path).iter("testcase")]


def read_case(case: ElementTree.Element) -> Result:
    parts = [*case.get("classname", "").split(".")[1:], case.get("name", "")]
    name = "::".join(parts)
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            return Result(name, "failed", found.get("message", "") + (found.text or ""))
    return Result(name, "passed" if case.find("skipped") is None else "skipped")


def report(suite: Suite, results: list[Result], scope: dict[str, str]) -> int:
    """Print what came of it; how many failures are not explained."""
    why: Counter[str] = Counter()
    failed: list[Result] = []
    for result in results:
        reason = reason_of(f"{suite.package}/{result.name}", result.words, scope)
        if result.outcome == "failed" and reason is None:
            failed.append(result)
        elif result.outcome == "failed":
            why[str(reason)] += 1
    passed = sum(result.outcome == "passed" for result in results)
    print(
        f"{suite.package} {version(suite.package)}: {passed} passed, {sum(why.values())} out of "
        f"scope, {sum(result.outcome == 'skipped' for result in results)} skipped by themselves, "
        f"{len(failed)} failed"
    )
    for reason, count in why.most_common():
        print(f"  out of scope: {count:3}  {reason}")
    for result in failed:
        print(f"  FAILED {result.name}: {shortened(result.words)}")
    return len(failed)


def shortened(words: str) -> str:
    return " ".join(words[:300].split())


def reason_of(name: str, words: str, scope: dict[str, str]) -> str | None:
    """Why a failure is none of ours; a pattern that begins with `?` is looked for in its words."""
    for pattern, why in scope.items():
        if fnmatchcase(name, pattern) or (pattern[0] == "?" and pattern[1:].strip() in words):
            return why
    return None


if __name__ == "__main__":
    sys.exit(main())
