"""Start the Hub by hand, with something on it: ``python -m tests.hub [--app]``.

With ``--app`` the app runs beside it as it would on a Space: sign in as ann or bob,
pick a dataset, train, publish, and look at what arrived. Ctrl-C ends both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from .demo import REPOSITORY, TOKENS, fill
from .server import CLIENT_ID, LoopbackHub

SHOWN = ("HF_ENDPOINT", "HF_HOME")
OAUTH = ("SYSTEM", "SPACE_ID", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    home = options.home or Path(tempfile.mkdtemp(prefix="hub-demo-"))
    with LoopbackHub(options.port) as hub:
        fill(hub)
        environment = hub.space_env(home / "client")
        environment["PHI3LORA_HOME"] = str(home / "app")
        print(describe(hub, environment), flush=True)
        try:
            return run_app(environment, options.app_port) if options.app else wait()
        except KeyboardInterrupt:
            return 0
        finally:
            if hub.unknown:
                print(f"Asked for, and not known here: {sorted(set(hub.unknown))}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of the Hub; default: a free one")
    parser.add_argument("--app", action="store_true", help="start the app beside the Hub")
    parser.add_argument("--app-port", type=int, default=7860, help="of the app")
    parser.add_argument("--home", type=Path, help="folder for runs and caches; default: a new one")
    return parser.parse_args(arguments)


def describe(hub: LoopbackHub, environment: dict[str, str]) -> str:
    """What to type to use this Hub from another terminal."""
    people = ", ".join(f"{name} ({token})" for name, token in TOKENS.items())
    repos = "\n".join(f"  {hub.url}/{repo.prefix}{repo.id}" for repo in hub.store.repos.values())
    lines = "\n".join(f"export {name}={environment[name]}" for name in SHOWN)
    signing_in = "\n".join(
        f"export {name}='{environment[name]}'" for name in (*OAUTH, "OPENID_PROVIDER_URL")
    )
    return (
        f"A Hub of your own at {hub.url}\n{repos}\n\nPeople and their tokens: {people}\n\n"
        f"For clients in another terminal:\n{lines}\n\n"
        f"For an app that signs people in (client {CLIENT_ID}):\n{signing_in}\n"
    )


def run_app(environment: dict[str, str], port: int) -> int:
    """Run ``app.py`` until it ends or Ctrl-C."""
    command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)]
    print(f"The app: http://127.0.0.1:{port}", flush=True)
    app = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        return app.wait()
    finally:
        app.terminate()
        app.wait()


def wait() -> int:
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
