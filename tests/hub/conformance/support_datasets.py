"""What datasets' own tests expect of their fixtures; its sdist holds the tests alone.

This file is laid beside them as ``conftest.py``.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from .fixtures.hub import CI_HUB_ENDPOINT, CI_HUB_USER, CI_HUB_USER_TOKEN

Temporary = Callable[..., AbstractContextManager[str]]


@pytest.fixture
def ci_hub_config() -> None:
    """The environment names the Hub already."""


@pytest.fixture
def set_ci_hub_access_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CI_HUB_USER_TOKEN)


@pytest.fixture(scope="session")
def hf_api() -> HfApi:
    return HfApi(endpoint=CI_HUB_ENDPOINT)


@pytest.fixture(scope="session")
def hf_token() -> str:
    return CI_HUB_USER_TOKEN


@pytest.fixture(autouse=True)
def signed_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their CI has a token stored; so it is here."""
    monkeypatch.setenv("HF_TOKEN", CI_HUB_USER_TOKEN)


@pytest.fixture
def cleanup_repo(hf_api: HfApi) -> Callable[[str], None]:
    def clean(repo_id: str) -> None:
        hf_api.delete_repo(repo_id, token=CI_HUB_USER_TOKEN, repo_type="dataset", missing_ok=True)

    return clean


@pytest.fixture
def temporary_repo(cleanup_repo: Callable[[str], None]) -> Temporary:
    @contextmanager
    def make(repo_id: str | None = None) -> Iterator[str]:
        name = repo_id or f"{CI_HUB_USER}/test-{uuid.uuid4().hex[:6]}-{int(time.time() * 10e3)}"
        try:
            yield name
        finally:
            cleanup_repo(name)

    return make


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("0\n1\n2\n3\n")
    return path


@pytest.fixture
def hf_private_dataset_repo_txt_data(temporary_repo: Temporary, hf_api: HfApi) -> Iterator[str]:
    with temporary_repo() as name:
        hf_api.create_repo(name, token=CI_HUB_USER_TOKEN, repo_type="dataset", private=True)
        yield name


@pytest.fixture
def hf_gated_dataset_repo_txt_data(temporary_repo: Temporary, hf_api: HfApi) -> Iterator[str]:
    with temporary_repo() as name:
        hf_api.create_repo(name, token=CI_HUB_USER_TOKEN, repo_type="dataset")
        options = {"token": CI_HUB_USER_TOKEN, "repo_type": "dataset"}
        data = {"path_or_fileobj": b"0\n1\n", "path_in_repo": "data/text_data.txt"}
        hf_api.upload_file(repo_id=name, **data, **options)
        hf_api.update_repo_settings(name, gated="auto", **options)
        yield name


@pytest.fixture(scope="session", autouse=True)
def image_file() -> None:
    """The picture that lies beside their tests, and not in the sdist."""
    from PIL import Image

    folder = Path(__file__).parent / "features" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (640, 480), (200, 100, 50)).save(folder / "test_image_rgb.jpg")


@pytest.fixture
def csv_path(tmp_path: Path) -> str:
    path = tmp_path / "data.csv"
    path.write_text("col_1,col_2,col_3\n" + "".join(f"{n},{n},{n}.0\n" for n in range(4)))
    return os.fspath(path)
