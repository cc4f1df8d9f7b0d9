"""Spaces: settings and the state of the machine they would run on; and buckets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import access, cards
from .routing import Hub, VisibleRepo, Who, WritableRepo
from .store import HubError, Repo, now

router = APIRouter()

SPACE = "/api/spaces/{ns}/{name}"
BUCKET = "/api/buckets/{ns}/{name}"
FLAVOURS = (
    {
        "name": "cpu-basic",
        "prettyName": "CPU Basic",
        "cpu": "2 vCPU",
        "ram": "16 GB",
        "ephemeralStorage": "20 GB",
        "accelerator": None,
        "unitCostMicroUSD": 0,
        "unitCostUSD": 0.0,
        "unitLabel": "minute",
    },
    {
        "name": "t4-small",
        "prettyName": "Nvidia T4 - small",
        "cpu": "4 vCPU",
        "ram": "15 GB",
        "ephemeralStorage": "50 GB",
        "accelerator": {
            "type": "gpu",
            "model": "T4",
            "quantity": "1",
            "vram": "16 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 6667,
        "unitCostUSD": 0.006667,
        "unitLabel": "minute",
    },
    {
        "name": "a10g-large",
        "prettyName": "Nvidia A10G - large",
        "cpu": "12 vCPU",
        "ram": "46 GB",
        "ephemeralStorage": "110 GB",
        "accelerator": {
            "type": "gpu",
            "model": "A10G",
            "quantity": "1",
            "vram": "24 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 25000,
        "unitCostUSD": 0.025,
        "unitLabel": "minute",
    },
    {
        "name": "a10g-small",
        "prettyName": "Nvidia A10G - small",
        "cpu": "4 vCPU",
        "ram": "15 GB",
        "ephemeralStorage": "110 GB",
        "accelerator": {
            "type": "gpu",
            "model": "A10G",
            "quantity": "1",
            "vram": "24 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 16667,
        "unitCostUSD": 0.016667,
        "unitLabel": "minute",
    },
    {
        "name": "l4x4",
        "prettyName": "4x Nvidia L4",
        "cpu": "48 vCPU",
        "ram": "186 GB",
        "ephemeralStorage": "3200 GB",
        "accelerator": {
            "type": "gpu",
            "model": "L4",
            "quantity": "4",
            "vram": "96 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 63333,
        "unitCostUSD": 0.063333,
        "unitLabel": "minute",
    },
)


def configure(repo: Repo, body: dict[str, Any]) -> None:
    """Take the settings that may come with the creation or duplication of a Space."""
    repo.space = {
        "secrets": {item["key"]: keep(item) for item in body.get("secrets") or []},
        "variables": {item["key"]: keep(item) for item in body.get("variables") or []},
        "hardware": body.get("hardware") or "cpu-basic",
        "requested": body.get("hardware") or "cpu-basic",
        "sleep": body.get("sleepTimeSeconds"),
        "volumes": check_volumes(body.get("volumes") or []),
        "paused": False,
        "restarts": 0,
    }


def keep(item: dict[str, Any]) -> dict[str, Any]:
    if not item.get("key") or "value" not in item:
        raise HubError(400, '"key" and "value" are required')
    return {"value": item["value"], "description": item.get("description"), "updatedAt": now()}


def check_volumes(volumes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for volume in volumes:
        if not str(volume.get("mountPath", "")).startswith("/") or not volume.get("source"):
            raise HubError(400, '"volumes" need a source and a mountPath that starts with /')
        if volume.get("type") not in ("bucket", "model", "dataset", "space"):
            raise HubError(400, '"volumes[].type" must be bucket, model, dataset or space')
    return volumes


def runtime(repo: Repo) -> dict[str, Any]:
    """The stage follows from the files: a Space without its app file does not start."""
    space = repo.space
    card = cards.metadata(repo.text("README.md"))
    stage = "RUNNING"
    if space["paused"]:
        stage = "PAUSED"
    elif card.get("sdk") not in cards.SDKS:
        stage = "CONFIG_ERROR"
    elif card["sdk"] == "gradio" and card.get("app_file", "app.py") not in repo.head.tree:
        stage = "NO_APP_FILE"
    current = space["hardware"] if stage == "RUNNING" else None
    return {
        "stage": stage,
        "hardware": {"current": current, "requested": space["requested"]},
        "gcTimeout": space["sleep"],
        "storage": None,
        "volumes": space["volumes"],
        "replicas": {"requested": 1, "current": 1 if stage == "RUNNING" else 0},
    }


@router.get("/api/spaces/hardware")
async def hardware_list() -> list[dict[str, Any]]:
    return list(FLAVOURS)


@router.get(SPACE + "/runtime")
async def get_runtime(repo: VisibleRepo) -> dict[str, Any]:
    return runtime(repo)


@router.get(SPACE + "/secrets")
async def get_secrets(repo: WritableRepo) -> dict[str, Any]:
    return without_values(repo.space["secrets"])


@router.post(SPACE + "/secrets")
async def set_secret(request: Request, repo: WritableRepo) -> dict[str, Any]:
    item = await request.json()
    repo.space["secrets"][item["key"]] = keep(item)
    return without_values(repo.space["secrets"])


@router.delete(SPACE + "/secrets")
async def delete_secret(request: Request, repo: WritableRepo) -> dict[str, Any]:
    repo.space["secrets"].pop((await request.json())["key"], None)
    return without_values(repo.space["secrets"])


def without_values(secrets: dict[str, Any]) -> dict[str, Any]:
    """Secrets are never read back."""
    return {k: {n: v for n, v in item.items() if n != "value"} for k, item in secrets.items()}


@router.get(SPACE + "/variables")
async def get_variables(repo: WritableRepo) -> dict[str, Any]:
    variables: dict[str, Any] = repo.space["variables"]
    return variables


@router.post(SPACE + "/variables")
async def set_variable(request: Request, repo: WritableRepo) -> dict[str, Any]:
    item = await request.json()
    repo.space["variables"][item["key"]] = keep(item)
    return await get_variables(repo)


@router.delete(SPACE + "/variables")
async def delete_variable(request: Request, repo: WritableRepo) -> dict[str, Any]:
    repo.space["variables"].pop((await request.json())["key"], None)
    return await get_variables(repo)


@router.post(SPACE + "/hardware")
async def set_hardware(
    request: Request, repo: VisibleRepo, caller: Who, store: Hub
) -> dict[str, Any]:
    access.check_machine(caller, repo)
    body = await request.json()
    if body.get("flavor") not in cards.HARDWARE:
        raise HubError(400, f'"flavor" must be one of {sorted(cards.HARDWARE)}')
    sdk = cards.metadata(repo.text("README.md")).get("sdk", "gradio")
    access.check_hardware(store, caller, repo.owner, sdk, body["flavor"])
    repo.space |= {"requested": body["flavor"], "hardware": body["flavor"]}
    repo.space["sleep"] = body.get("sleepTimeSeconds", repo.space["sleep"])
    return runtime(repo)


@router.post(SPACE + "/sleeptime")
async def set_sleep_time(request: Request, repo: VisibleRepo, caller: Who) -> dict[str, Any]:
    access.check_machine(caller, repo)
    repo.space["sleep"] = (await request.json())["seconds"]
    return runtime(repo)


@router.post(SPACE + "/restart")
async def restart(repo: VisibleRepo, caller: Who) -> dict[str, Any]:
    access.check_machine(caller, repo)
    repo.space["paused"] = False
    repo.space["restarts"] += 1
    return runtime(repo)


@router.post(SPACE + "/pause")
async def pause(repo: WritableRepo) -> dict[str, Any]:
    repo.space["paused"] = True
    return runtime(repo)


@router.put(SPACE + "/volumes")
async def set_volumes(request: Request, repo: WritableRepo) -> dict[str, Any]:
    repo.space["volumes"] = check_volumes((await request.json())["volumes"])
    return runtime(repo)


@router.delete(SPACE + "/volumes")
async def delete_volumes(repo: WritableRepo) -> dict[str, Any]:
    if not repo.space["volumes"]:
        raise HubError(400, "This Space has no volumes")
    repo.space["volumes"] = []
    return runtime(repo)


@router.post("/api/models/{ns}/{name}/duplicate")
@router.post("/api/datasets/{ns}/{name}/duplicate")
@router.post(SPACE + "/duplicate")
async def duplicate(request: Request, repo: VisibleRepo, store: Hub, caller: Who) -> dict[str, Any]:
    """Copy the files of the head, without history, secrets or variables."""
    body = await request.json()
    access.check_content(caller, repo)
    repo_id = body["repository"]
    access.check_create(caller, repo.kind, repo_id.split("/")[0])
    if repo.kind == "space":
        sdk = cards.metadata(repo.text("README.md")).get("sdk", "gradio")
        hardware = body.get("hardware") or "cpu-basic"
        access.check_hardware(store, caller, repo_id.split("/")[0], sdk, hardware)
    url = f"{store.url}/{repo.prefix}{repo_id}"
    if store.find(repo.kind, repo_id):
        raise HubError(409, f"You already created this {repo.kind} repo", url=url)
    private = body.get("visibility", "public") == "private"
    app = caller.token.app if caller.token else None
    copy = store.create(repo.kind, repo_id, caller.name, private=private, app=app)
    tree = {
        path: copy.keep(repo.content(e), e.lfs is not None) for path, e in repo.head.tree.items()
    }
    copy.commit("main", tree, f"Duplicate from {repo.id}", caller.name)
    if repo.kind == "space":
        configure(copy, body)
    return {"url": url}


@router.post(BUCKET)
async def create_bucket(
    request: Request, store: Hub, caller: Who, ns: str, name: str
) -> dict[str, Any]:
    owner = caller.name if ns == "me" else ns
    access.check_create(caller, "bucket", owner)
    bucket_id, url = f"{owner}/{name}", f"{store.url}/buckets/{owner}/{name}"
    if bucket_id in store.buckets:
        raise HubError(409, "You already created this bucket", url=url)
    body = await request.json() if await request.body() else {}
    private = body.get("visibility", "public") == "private" or body.get("private") is True
    store.buckets[bucket_id] = {
        "id": bucket_id,
        "private": private,
        "createdAt": now(),
        "size": 0,
        "totalFiles": 0,
    }
    return {"url": url}


@router.delete(BUCKET)
async def delete_bucket(store: Hub, caller: Who, ns: str, name: str) -> dict[str, Any]:
    access.check_create(caller, "bucket", ns)
    if store.buckets.pop(f"{ns}/{name}", None) is None:
        raise HubError(404, "Bucket not found", "RepoNotFound")
    return {}


@router.get(BUCKET)
async def bucket_info(store: Hub, caller: Who, ns: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] | None = store.buckets.get(f"{ns}/{name}")
    if found is None or (found["private"] and not caller.owns(ns)):
        raise HubError(404, "Bucket not found", "RepoNotFound")
    return found
