"""What the Hub makes of a README: its metadata, its complaints, and the tags on the page.

The checks follow the Hub's documented rules for metadata. It may know more of them: a
card that fails here fails there, and one that passes here most likely passes there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import yaml

from .store import Entry, Repo


def words(text: str) -> list[str]:
    """Names that are written one after another."""
    return text.split()


LICENSES = set(
    words(
        """
        apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m
        bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause
        bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
        cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
        cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
        cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0
        etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0
        lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 ncsa
        odc-by odbl ofl-1.1 openmdw-1.0 openrail++ osl-3.0 pddl postgresql unlicense zlib
        deepfloyd-if-license fair-noncommercial-research-license gemma grok2-community llama2
        llama3 llama3.1 llama3.2 llama3.3 llama4 unknown other
        """
    )
)
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
SDKS = {"gradio", "docker", "static"}
OAUTH_SCOPES = set(
    words(
        """
        openid profile email read-billing read-repos gated-repos contribute-repos write-repos
        manage-repos inference-api jobs webhooks write-discussions read-mcp read-memberships
        read-collections write-collections
        """
    )
)
HARDWARE = set(
    words(
        """
        cpu-basic cpu-upgrade zero-a10g t4-small t4-medium l4x1 l4x4 l40sx1 l40sx4 l40sx8
        a10g-small a10g-large a10g-largex2 a10g-largex4 a100-large a100x4 a100x8
        """
    )
)
OAUTH_MINUTES, LONGEST_OAUTH_MINUTES = 480, 43200
REPO_ID = re.compile(r"^[\w\-.]+(/[\w\-.]+)?$")
_FRONT_MATTER = re.compile(
    r"\A\s*^---[ \t]*\r?\n(.*?\n)?---[ \t]*(\r?\n|\Z)", re.DOTALL | re.MULTILINE
)

Problems = list[dict[str, str]]


def metadata(readme: str) -> dict[str, Any]:
    """The front matter of a README, or ``{}`` when there is none or it cannot be read."""
    try:
        found = read_front_matter(readme)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def read_front_matter(readme: str) -> Any:
    """Raises: yaml.YAMLError."""
    match = _FRONT_MATTER.match(readme)
    return yaml.safe_load(match.group(1) or "") if match else None


def check(readme: str, kind: str) -> tuple[Problems, Problems]:
    """Errors and warnings, each ``{"message": …}``."""
    try:
        data = read_front_matter(readme)
    except yaml.YAMLError as error:
        return [{"message": f"YAML metadata is not valid: {error}"}], []
    if data is None:
        warning = "empty or missing yaml metadata in repo card"
        errors = [] if kind != "space" else [{"message": '"sdk" is required'}]
        return errors, [{"message": warning}]
    if not isinstance(data, dict):
        return [{"message": "YAML metadata must be a mapping"}], []
    messages = [message for test in (_CHECKS + _KIND_CHECKS[kind]) for message in test(data)]
    return [{"message": message} for message in messages], []


def _check_license(data: dict[str, Any]) -> list[str]:
    given = data.get("license")
    names = given if isinstance(given, list) else [given] if given is not None else []
    wrong = [name for name in names if name not in LICENSES]
    return [f'"license" must be one of the known licences, got {wrong}'] if wrong else []


def _strings(field: str) -> Callable[[dict[str, Any]], list[str]]:
    """A check that a field is a string or a list of strings."""

    def test(data: dict[str, Any]) -> list[str]:
        given = data.get(field)
        items = given if isinstance(given, list) else [given] if given is not None else []
        good = all(isinstance(item, str) and item for item in items)
        return [] if good else [f'"{field}" must be a string or a list of strings']

    return test


def _repo_ids(field: str) -> Callable[[dict[str, Any]], list[str]]:
    """A check that a field names repos of the Hub, not paths of a machine."""

    def test(data: dict[str, Any]) -> list[str]:
        given = data.get(field)
        items = given if isinstance(given, list) else [given] if given is not None else []
        wrong = [item for item in items if not (isinstance(item, str) and REPO_ID.match(item))]
        return (
            [f'"{field}" with value {wrong} is not valid. Use a model or dataset id']
            if wrong
            else []
        )

    return test


def _one_string(field: str) -> Callable[[dict[str, Any]], list[str]]:
    def test(data: dict[str, Any]) -> list[str]:
        good = field not in data or isinstance(data[field], str)
        return [] if good else [f'"{field}" must be a string']

    return test


def _check_model_index(data: dict[str, Any]) -> list[str]:
    """``model-index``: names, tasks, datasets and metrics, each with what the page needs."""
    index = data.get("model-index")
    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        if not isinstance(model, dict) or not model.get("name"):
            errors.append(f'"model-index[{i}].name" is required')
            continue
        for j, result in enumerate(model.get("results") or []):
            errors += _check_result(result, f"model-index[{i}].results[{j}]")
    return errors


def _check_result(result: dict[str, Any], where: str) -> list[str]:
    errors = []
    for group, fields in (("task", ("type",)), ("dataset", ("type", "name"))):
        part = result.get(group) or {}
        errors += [f'"{where}.{group}.{name}" is required' for name in fields if not part.get(name)]
    metrics = result.get("metrics")
    if not metrics:
        errors.append(f'"{where}.metrics" is required')
    for k, metric in enumerate(metrics or []):
        errors += [
            f'"{where}.metrics[{k}].{name}" is required'
            for name in ("type", "value")
            if metric.get(name) is None
        ]
    return errors


def _check_configs(data: dict[str, Any]) -> list[str]:
    configs = data.get("configs") or []
    if not isinstance(configs, list):
        return ['"configs" must be an array']
    named = all(isinstance(item, dict) and item.get("config_name") for item in configs)
    return [] if named else ['"configs[].config_name" is required']


def _check_space(data: dict[str, Any]) -> list[str]:
    errors = []
    if data.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of {sorted(SDKS)}')
    for field in ("colorFrom", "colorTo"):
        if field in data and data[field] not in COLOURS:
            errors.append(f'"{field}" must be one of {sorted(COLOURS)}')
    if len(str(data.get("short_description", ""))) > 60:
        errors.append('"short_description" length must be less than or equal to 60 characters long')
    if data.get("suggested_hardware", "cpu-basic") not in HARDWARE:
        errors.append(f'"suggested_hardware" must be one of {sorted(HARDWARE)}')
    unknown = set(data.get("hf_oauth_scopes") or []) - OAUTH_SCOPES
    if unknown:
        errors.append(f'"hf_oauth_scopes" does not know {sorted(unknown)}')
    minutes = data.get("hf_oauth_expiration_minutes", OAUTH_MINUTES)
    if not isinstance(minutes, int) or not 1 <= minutes <= LONGEST_OAUTH_MINUTES:
        errors.append(
            f'"hf_oauth_expiration_minutes" must be a number between 1 and {LONGEST_OAUTH_MINUTES}'
        )
    if "sdk_version" in data and not isinstance(data["sdk_version"], str):
        errors.append('"sdk_version" must be a string')
    return errors


_CHECKS: list[Callable[[dict[str, Any]], list[str]]] = [
    _check_license,
    _strings("tags"),
    _strings("language"),
    _repo_ids("datasets"),
]
_KIND_CHECKS: dict[str, list[Callable[[dict[str, Any]], list[str]]]] = {
    "model": [
        _repo_ids("base_model"),
        _one_string("pipeline_tag"),
        _one_string("library_name"),
        _check_model_index,
    ],
    "dataset": [_strings("task_categories"), _check_configs],
    "space": [_check_space],
}


def tags(repo: Repo, card: dict[str, Any]) -> list[str]:
    """The tags that the Hub puts on a repo: the card's own, and those it works out."""
    found = list(_listed(card, "tags"))
    found += [f"license:{name}" for name in _listed(card, "license")]
    if repo.kind == "dataset":
        for field in ("task_categories", "language", "size_categories"):
            found += [f"{field}:{value}" for value in _listed(card, field)]
    if repo.kind == "model":
        found += _model_tags(repo, card)
    return list(dict.fromkeys([*found, "region:us"]))


def _model_tags(repo: Repo, card: dict[str, Any]) -> list[str]:
    tree = repo.head.tree
    found = [value for value in (library(repo, card), card.get("pipeline_tag")) if value]
    if any(path.endswith(".safetensors") for path in tree):
        found.append("safetensors")
    model_type = config(repo).get("model_type")
    found += [model_type] if model_type else []
    found += [f"dataset:{name}" for name in _listed(card, "datasets")]
    relation = "adapter" if "adapter_config.json" in tree else "finetune"
    for name in _listed(card, "base_model"):
        found += [f"base_model:{name}", f"base_model:{relation}:{name}"]
    return found


def library(repo: Repo, card: dict[str, Any]) -> str | None:
    """``library_name`` of the card, or what the files say."""
    if card.get("library_name"):
        return str(card["library_name"])
    if "adapter_config.json" in repo.head.tree:
        return "peft"
    return "transformers" if config(repo).get("architectures") else None


def config(repo: Repo) -> dict[str, Any]:
    """The part of ``config.json`` that the Hub shows."""
    try:
        full = json.loads(repo.text("config.json") or "{}")
    except json.JSONDecodeError:
        return {}
    shown = ("architectures", "model_type", "quantization_config")
    return {name: full[name] for name in shown if name in full}


def parameters(repo: Repo) -> dict[str, Any] | None:
    """Numbers of parameters by dtype, summed over the repo's safetensors files."""
    counts: dict[str, int] = {}
    for path, entry in repo.head.tree.items():
        if path.endswith(".safetensors"):
            for dtype, number in _count(repo.content(entry)).items():
                counts[dtype] = counts.get(dtype, 0) + number
    return {"parameters": counts, "total": sum(counts.values())} if counts else None


def _count(data: bytes) -> dict[str, int]:
    """Parameters by dtype in one safetensors file; ``{}`` when it is not one."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except (UnicodeDecodeError, json.JSONDecodeError):
        return {}
    counts: dict[str, int] = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            number = math.prod(tensor["shape"])
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + number
    return counts


def is_large(path: str, size: int, sample: bytes, patterns: str) -> bool:
    """Whether the Hub would take a file through LFS: by name, by size, or because it is binary."""
    lines = (line.split() for line in patterns.splitlines())
    globs = [words[0] for words in lines if "filter=lfs" in words]
    named = any(fnmatch(path, glob) or fnmatch(path.split("/")[-1], glob) for glob in globs)
    return size > 0 and (named or size > 10 * 1024 * 1024 or b"\0" in sample)


def ignored(path: str, patterns: str) -> bool:
    """Whether a ``.gitignore`` leaves a path out (names, globs and folders; no negation)."""
    parts = path.split("/")
    for line in patterns.splitlines():
        glob = line.strip().strip("/")
        if not glob or glob.startswith(("#", "!")):
            continue
        if fnmatch(path, glob) or any(fnmatch(part, glob) for part in parts):
            return True
    return False


def _listed(card: dict[str, Any], field: str) -> list[str]:
    value = card.get(field)
    items = value if isinstance(value, list) else [value] if value else []
    return [str(item) for item in items]


def size_of(tree: dict[str, Entry]) -> int:
    """Bytes of all files of a tree."""
    return sum(entry.size for entry in tree.values())
