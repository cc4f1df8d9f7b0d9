"""Who asks, what they own, and what a visitor may do and read.

    callers = Callers(settings)
    caller = callers.caller(Session(browser="…"))     a door says what it knows of a request
    check_may_train(caller, settings)                 AccessError for who may not

On one's own machine everybody is `local`; on a Space a caller is whoever the Hub says the
session's token belongs to, and nobody else.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from phi3lora.app.signed_out import SignedOut
from phi3lora.config import POCKET, ModelConfig, RunConfig
from phi3lora.data.sources import EXAMPLE_PREFIX
from phi3lora.errors import AccessError, HubError
from phi3lora.hub.access import SUGGESTED_MODELS, Identity, cached_identity, identity, stored_token
from phi3lora.hub.client import Unreachable
from phi3lora.runs.store import LOCAL
from phi3lora.settings import Settings

ANONYMOUS = ""  # owns nothing
MOST_REMEMBERED = 1000  # people, browsers, and permissions
PERMISSION_SECONDS = 60.0  # for which the Hub's permission to read a base is good
SIGN_IN = "Sign in with a Hugging Face account first, at the top of the page."


@dataclass(frozen=True)
class Session:
    """What a door knows of a request.

    Attributes:
        browser: tells browsers apart on one's own machine; empty for a program.
        token: of whoever signed in with Hugging Face, on a Space.
    """

    browser: str = ""
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Caller:
    """Who asks: the owner of their runs, and their Hub token if they signed in."""

    name: str = LOCAL
    token: str | None = field(default=None, repr=False)

    @property
    def anonymous(self) -> bool:
        """Nobody that is known: owns no run, and may only compare."""
        return self.name == ANONYMOUS

    def owns(self, namespace: str) -> bool:
        """Whether an account is this person's, or an organisation's in whose name they write."""
        if self.name == namespace:
            return True
        return self.token is not None and cached_identity(self.token).owns(namespace)

    def needed_token(self, otherwise: str = SIGN_IN) -> str:
        """The token. Raises AccessError, saying `otherwise`, where nobody is signed in."""
        if self.token is None:
            raise AccessError(otherwise)
        return self.token

    def needed_identity(self) -> Identity:
        """Whom the Hub knows by the token. Raises AccessError without one, HubError."""
        return cached_identity(self.needed_token())

    def known_identity(self) -> Identity | None:
        """Whom the Hub knows by the token; None where there is none, or the Hub does not say."""
        try:
            return self.identity()
        except HubError:
            return None

    def identity(self) -> Identity | None:
        """Whom the Hub knows by the token, asked once a minute; None without one. HubError."""
        return cached_identity(self.token) if self.token else None


class Callers:
    """Everybody who asks. Tokens are kept in memory and nowhere else."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.signed_out = SignedOut(settings.home / "signed-out.txt")
        self.beyond_loopback = False  # neighbours reach the app: the stored token is not theirs
        self.listed_bases: set[str] = set()  # that the owner of a Space shows to everybody
        self._tokens: OrderedDict[str, str] = OrderedDict()  # by browser
        self._names: OrderedDict[str, str] = OrderedDict()  # by a token's hash
        self._readable: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self.on_sign_in: Callable[[Caller], None] = lambda caller: None  # with a token not yet seen

    def caller(self, session: Session = Session()) -> Caller:
        """Who sent a request. Raises HubError where the Hub cannot be asked, and was not lately."""
        if not self.settings.on_space:
            stored = None if self.beyond_loopback else stored_token()
            return Caller(LOCAL, self._tokens.get(session.browser) or stored)
        if session.token is None or self.signed_out.ended(session.token):
            return Caller(ANONYMOUS)
        return self._owner_of(session.token)

    def _owner_of(self, token: str) -> Caller:
        """Whom the Hub knows by this token; whom it knew, while it gives no answer."""
        key = hashlib.sha256(token.encode()).hexdigest()
        try:
            name = cached_identity(token).name
        except Unreachable:
            if key not in self._names:
                raise
            return Caller(self._names[key], token)
        except HubError:  # refused: revoked, or expired
            return Caller(ANONYMOUS)
        caller, seen = Caller(name, token), key in self._names
        _remember(self._names, key, name)
        if not seen:
            threading.Thread(target=self.on_sign_in, args=(caller,), daemon=True).start()
        return caller

    def sign_in(self, token: str, session: Session) -> str:
        """Use this token for what this browser asks, until the app ends; whose it is.

        Only on one's own machine. Raises HubError for a token that the Hub refuses.
        """
        if self.settings.on_space or not session.browser:
            raise AccessError("Sign in with Hugging Face; tokens are not taken here.")
        name = cached_identity(token).name
        _remember(self._tokens, session.browser, token)
        threading.Thread(target=self.on_sign_in, args=(Caller(LOCAL, token),), daemon=True).start()
        return name

    def sign_out(self, session: Session) -> None:
        """Forget this browser's token."""
        self._tokens.pop(session.browser, None)

    def check_base(self, base: ModelConfig, caller: Caller) -> None:
        """Whether this caller may read the base, which somebody else may have loaded.

        Asked with the caller's own token; a yes is good for a while. Raises HubError, ModelError.
        """
        from phi3lora.models.base import check_base, resolve_path
        from phi3lora.models.hardware import detect_hardware

        self.check_listed(base.path, caller)
        request = (caller.name, base.path, base.revision or "")
        if time.monotonic() < self._readable.get(request, 0):
            return
        path = resolve_path(base.path, detect_hardware(base.device))
        check_base(path, base.revision, caller.token)
        _remember(self._readable, request, time.monotonic() + PERMISSION_SECONDS)

    def check_listed(self, base: str, caller: Caller) -> None:
        """On a Space an anonymous visitor loads no base of their own choice. AccessError."""
        listed = {"auto", POCKET, *SUGGESTED_MODELS} | self.listed_bases
        if self.settings.on_space and caller.anonymous and base not in listed:
            raise AccessError(
                f"{base[:100]} is not among the bases that are open to everybody here; sign in "
                "with Hugging Face to load it."
            )


def terminal_caller() -> Caller:
    """Whoever types commands: the owner of this machine's runs."""
    return Caller(LOCAL, stored_token())


def who(caller: Caller) -> Identity:
    """What the Hub says of a caller now, nothing remembered. Raises AccessError, HubError."""
    return identity(caller.needed_token())


def why_not_train(caller: Caller, settings: Settings) -> str:
    """Why this visitor may not train here; empty for who may."""
    allowed, owner = settings.who_may_train, settings.space_owner
    if caller.anonymous:
        return (
            "Training here asks you to sign in with Hugging Face first, at the top of the "
            "page. Compare is open to everybody."
        )
    if allowed == "owner" and owner and not caller.owns(owner):
        return f"Only {owner} may train on this Space; duplicate it to train."
    return ""


def check_may_train(caller: Caller, settings: Settings) -> None:
    """Raises AccessError where this visitor may not train here."""
    if reason := why_not_train(caller, settings):
        raise AccessError(reason)


def check_may_look(config: RunConfig, caller: Caller, settings: Settings) -> None:
    """Whether this visitor may see the data of a config. Raises AccessError.

    Bundled data, as a base that is open to everybody reads it, is shown to everybody: there is
    nothing in it to fetch, and little to compute.
    """
    bundled = config.data.path.startswith(EXAMPLE_PREFIX) and config.model.adapter is None
    if not bundled or config.model.path not in {"auto", POCKET, *SUGGESTED_MODELS}:
        check_may_train(caller, settings)


def _remember(memory: OrderedDict[Any, Any], key: object, value: object) -> None:
    """Add to a memory that forgets the oldest."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > MOST_REMEMBERED:
        memory.popitem(last=False)
