"""What huggingface_hub's own tests expect of their ``conftest``; its sdist holds the tests alone.

This file is laid beside them as ``conftest.py``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from huggingface_hub import HfApi, RepoUrl, constants

from .testing_constants import ENDPOINT_STAGING, TOKEN


class RepoFactory(Protocol):
    def __call__(self, repo_type: str = "model", **options: Any) -> RepoUrl: ...


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches and stored tokens of one test are no other's."""
    home = tmp_path / "hf_home"
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(home / "assets"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(home / "xet"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))


@pytest.fixture(autouse=True)
def fx_cache_dir(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Classes with a ``cache_dir`` get one."""
    if request.cls is not None:
        request.cls.cache_dir = tmp_path / "cache"
        request.cls.cache_dir.mkdir()
        request.cls.cache_dir_str = str(request.cls.cache_dir)


@pytest.fixture(scope="session")
def api() -> HfApi:
    return HfApi(endpoint=ENDPOINT_STAGING, token=TOKEN)


@pytest.fixture
def repo_factory(api: HfApi) -> Iterator[RepoFactory]:
    """Makes repositories, and removes them after the test."""
    made: list[tuple[RepoUrl, Any]] = []

    def make(repo_type: str = "model", **options: Any) -> RepoUrl:
        name = options.pop("repo_id", None) or f"repo-{uuid.uuid4().hex[:6]}-{int(time.time())}"
        if repo_type == "space":
            options.setdefault("space_sdk", "static")
        url = api.create_repo(name, repo_type=repo_type, **options)
        made.append((url, options.get("token")))
        return url

    yield make
    for url, token in made:
        api.delete_repo(url.repo_id, repo_type=url.repo_type, missing_ok=True, token=token)


@pytest.fixture
def repo_url(repo_factory: RepoFactory) -> RepoUrl:
    return repo_factory()
