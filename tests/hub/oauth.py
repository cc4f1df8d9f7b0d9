"""Signing in: a small OpenID provider with the authorization-code flow and PKCE.

The page at ``/oauth/authorize`` has one button for each person
(``button[name=user][value=ann]``) and one to refuse. ``sign_in_as`` skips it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from html import escape
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from joserfc import jwt
from joserfc.jwk import RSAKey

from .cards import OAUTH_MINUTES, OAUTH_SCOPES
from .routing import Hub, Who
from .store import HubError, Store, Token, User

router = APIRouter()

CODE_SECONDS = 300


@dataclass
class App:
    """A registered OAuth app, such as a Space with ``hf_oauth: true``."""

    client_id: str
    client_secret: str
    redirects: tuple[str, ...]  # how an address that codes may be sent to begins
    scopes: frozenset[str]
    minutes: int = OAUTH_MINUTES  # that a sign-in lasts: hf_oauth_expiration_minutes


@dataclass
class Code:
    """A one-time code, with what it was given for."""

    app: App
    user: User
    redirect_uri: str
    scopes: frozenset[str]
    orgs: frozenset[str]
    nonce: str | None
    challenge: str | None
    born: float = field(default_factory=time.time)


@dataclass
class Provider:
    apps: dict[str, App] = field(default_factory=dict)
    codes: dict[str, Code] = field(default_factory=dict)
    expires_in: int | None = None  # seconds that a token lives; None for the app's own minutes
    sign_in_as: str | None = None
    key: RSAKey = field(
        default_factory=lambda: RSAKey.generate_key(2048, {"kid": "loopback", "use": "sig"})
    )


def new_key() -> RSAKey:
    return RSAKey.generate_key(2048, {"kid": "loopback", "use": "sig"})


def get_provider(request: Request) -> Provider:
    provider: Provider = request.app.state.oauth
    return provider


@router.get("/.well-known/openid-configuration")
async def discovery(store: Hub) -> dict[str, Any]:
    return {
        "issuer": store.url,
        "authorization_endpoint": f"{store.url}/oauth/authorize",
        "token_endpoint": f"{store.url}/oauth/token",
        "userinfo_endpoint": f"{store.url}/oauth/userinfo",
        "jwks_uri": f"{store.url}/oauth/jwks",
        "scopes_supported": sorted(OAUTH_SCOPES),
        "response_types_supported": ["code"],
        "grant_types_supported": ["authorization_code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "code_challenge_methods_supported": ["S256"],
    }


@router.get("/oauth/jwks")
async def jwks(request: Request) -> dict[str, Any]:
    return {"keys": [get_provider(request).key.as_dict(private=False, alg="RS256")]}


@router.get("/oauth/authorize")
async def authorize(request: Request, store: Hub) -> Response:
    provider = get_provider(request)
    check_request(provider, dict(request.query_params))
    if provider.sign_in_as:
        return send_code(provider, store, dict(request.query_params), provider.sign_in_as)
    return HTMLResponse(consent_page(store, dict(request.query_params)))


@router.post("/oauth/authorize")
async def decide(request: Request, store: Hub) -> Response:
    provider, asked = get_provider(request), dict(request.query_params)
    check_request(provider, asked)
    form = await request.form()
    user, orgs = form.get("user"), frozenset(map(str, form.getlist("org")))
    if not user:
        words = {"error": "access_denied", "error_description": "The user refused"}
        return go_back(asked, words)
    return send_code(provider, store, asked, str(user), orgs)


def check_request(provider: Provider, asked: dict[str, str]) -> App:
    """Raises: HubError 400 for an app, an address or a scope that was not registered."""
    app = provider.apps.get(asked.get("client_id", ""))
    if app is None:
        raise HubError(400, "Invalid client id")
    if not asked.get("redirect_uri", "").startswith(app.redirects):
        raise HubError(400, f"Invalid redirect_uri: {asked.get('redirect_uri')!r}")
    if asked.get("response_type") != "code":
        raise HubError(400, "Only response_type=code is possible")
    unknown = set(asked.get("scope", "openid").split()) - app.scopes
    if unknown:
        raise HubError(400, f"Scopes that this app did not register: {sorted(unknown)}")
    return app


def consent_page(store: Store, asked: dict[str, str]) -> str:
    people = [user for user in store.users.values() if not user.is_org]
    buttons = "".join(
        f'<button name="user" value="{escape(user.name)}">Continue as {escape(user.name)}</button>'
        for user in people
    )
    orgs = "".join(
        f'<label><input type="checkbox" name="org" value="{escape(user.name)}"> also as '
        f"{escape(user.name)}</label>"
        for user in store.users.values()
        if user.is_org
    )
    scopes = "".join(f"<li>{escape(scope)}</li>" for scope in asked.get("scope", "").split())
    return (
        "<!doctype html><title>Sign in with Hugging Face (loopback)</title>"
        "<body style='font:16px system-ui;max-width:30rem;margin:4rem auto;line-height:1.6'>"
        f"<h1>Sign in</h1><p>This app asks for:</p><ul>{scopes}</ul>"
        f"<form method='post' style='display:grid;gap:.5rem'>{orgs}{buttons}"
        "<button name='user' value=''>Refuse</button></form>"
    )


def send_code(
    provider: Provider,
    store: Store,
    asked: dict[str, str],
    name: str,
    orgs: frozenset[str] = frozenset(),
) -> Response:
    if name not in store.users:
        raise HubError(400, f"No user {name!r}")
    value = secrets.token_urlsafe(24)
    provider.codes[value] = Code(
        app=provider.apps[asked["client_id"]],
        user=store.users[name],
        redirect_uri=asked["redirect_uri"],
        scopes=frozenset(asked.get("scope", "openid").split()),
        orgs=orgs,
        nonce=asked.get("nonce"),
        challenge=asked.get("code_challenge"),
    )
    return go_back(asked, {"code": value})


def go_back(asked: dict[str, str], answer: dict[str, str]) -> Response:
    parts = urlsplit(asked["redirect_uri"])
    state = {"state": asked["state"]} if "state" in asked else {}
    query = urlencode([*parse_qsl(parts.query), *{**answer, **state}.items()])
    return RedirectResponse(urlunsplit(parts._replace(query=query)), 303)


@router.post("/oauth/token")
async def token(request: Request, store: Hub) -> Response:
    provider, form = get_provider(request), dict(await request.form())
    client_id, secret = client_of(request, form)
    code = provider.codes.pop(str(form.get("code")), None)
    problem = find_problem(code, client_id, secret, form)
    if problem or code is None:
        return JSONResponse({"error": "invalid_grant", "error_description": problem}, 400)
    seconds = provider.expires_in or code.app.minutes * 60
    given = Token(
        value=f"hf_oauth_{secrets.token_urlsafe(24)}",
        user=code.user.name,
        role="oauth",
        scopes=code.scopes,
        app=code.app.client_id,
        expires_at=time.time() + seconds,
        orgs=code.orgs,
    )
    store.tokens[given.value] = given
    answer = {
        "access_token": given.value,
        "token_type": "bearer",
        "expires_in": seconds,
        "scope": " ".join(sorted(code.scopes)),
    }
    if "openid" in code.scopes:
        answer["id_token"] = sign_id(provider, store, code)
    return JSONResponse(answer)


def client_of(request: Request, form: dict[str, Any]) -> tuple[str, str]:
    """Client id and secret, from the header (basic) or the form (post)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        client_id, _, secret = base64.b64decode(value).decode().partition(":")
        return client_id, secret
    return str(form.get("client_id", "")), str(form.get("client_secret", ""))


def find_problem(
    code: Code | None, client_id: str, secret: str, form: dict[str, Any]
) -> str | None:
    """Why a code is not good, or None."""
    if code is None or code.born + CODE_SECONDS < time.time():
        return "The code is unknown, used or expired"
    if (client_id, secret) != (code.app.client_id, code.app.client_secret):
        return "The client is not the one that asked, or its secret is wrong"
    if form.get("grant_type") != "authorization_code":
        return "grant_type must be authorization_code"
    if form.get("redirect_uri") != code.redirect_uri:
        return "redirect_uri is not the one that was asked for"
    digest = hashlib.sha256(str(form.get("code_verifier", "")).encode()).digest()
    if code.challenge and base64.urlsafe_b64encode(digest).decode().rstrip("=") != code.challenge:
        return "code_verifier does not fit the challenge"
    return None


def sign_id(provider: Provider, store: Store, code: Code) -> str:
    seconds = int(time.time())
    claims = {
        **describe_user(store, code.user, code.scopes),
        "iss": store.url,
        "aud": code.app.client_id,
        "iat": seconds,
        "auth_time": seconds,
        "exp": seconds + 3600,
    }
    if code.nonce:
        claims["nonce"] = code.nonce
    return jwt.encode({"alg": "RS256", "kid": "loopback"}, claims, provider.key)


def describe_user(store: Store, user: User, scopes: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"sub": user.id}
    if "profile" in scopes:
        found |= {
            "name": user.fullname,
            "preferred_username": user.name,
            "profile": f"{store.url}/{user.name}",
            "picture": f"{store.url}/avatars/{user.name}.svg",
            "website": "",
            "isPro": user.pro,
            "canPay": user.pro,
            "orgs": [],
        }
    if "email" in scopes:
        found |= {"email": user.email, "email_verified": True}
    return found


@router.get("/oauth/userinfo")
async def userinfo(store: Hub, caller: Who) -> dict[str, Any]:
    if caller.user is None or caller.token is None:
        raise HubError(401, "Invalid username or password.")
    return describe_user(store, caller.user, caller.token.scopes)
