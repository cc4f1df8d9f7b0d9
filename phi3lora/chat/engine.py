"""Chat with base and tuned: one base in memory, both answers from the same passes, for everybody.

    engine = ChatEngine(settings)
    engine.load("pocket", adapter=run.folder / "adapter")
    for pair in engine.reply([{"role": "user", "content": "Hello"}], options=Options(seed=1)):
        print(pair.base, pair.tuned)

One thread owns the model. It takes requests in the order they came, answers several at once (every
pass adds a token to each), and lets nobody hold the model for longer than `Settings.turn_seconds`
while somebody else waits: a longer answer goes back in the queue, behind those that have not begun,
and continues where it was.

Importing this module does not import torch; the first request does.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from phi3lora import words
from phi3lora.chat.answering import Answering, Room, Tell
from phi3lora.chat.options import Pair, Side
from phi3lora.chat.requests import Request
from phi3lora.config import ModelConfig
from phi3lora.errors import ModelError, Phi3LoraError
from phi3lora.importing import heavy_imports
from phi3lora.settings import Settings
from phi3lora.versions import without_advice

if TYPE_CHECKING:
    from phi3lora.chat.adapters import Adapter
    from phi3lora.chat.serving import Serving

MOST_ACTIVE = 8  # requests that are answered together
NEWCOMERS = 2  # more that may join them at once, for their first turn, where they are shorter
MOST_WAITING = 128  # requests in the queue, which hold next to nothing; more are refused
LONGEST_PAUSE = 10.0  # turns after whose beginning an answer is no longer overtaken by new ones
# Tokens of prompts that a pass reads beside a short answer: on a GPU they cost it next to nothing.
READ_BESIDE = 64
LONGER = 2  # times the tokens of a question and its answer, from which a shorter one goes first
POLL_SECONDS = 1.0  # how often the engine checks whether a training needs its memory
RELOAD_PATIENCE = 3.0  # times the loading time that a base is kept while another is waited for
BYTES = {"none": 0, "nf4": 0.6, "fp4": 0.6, "int8": 1.1}  # of a weight; 0: by its precision
ALIVE_SECONDS = 0.5  # how often a reader checks whether the model's thread lives
log = logging.getLogger(__name__)


class BusyError(ModelError):
    """Too many people are asking, or a training has the memory. Asking later will do."""


def no_training() -> int | None:
    """The bytes that a training may yet take, where nothing trains: None."""
    return None


class ChatEngine(Answering):
    """Answers with base and tuned; one for the whole app, safe to use from any thread.

    Args:
        settings: `turn_seconds` and `chat_graph` are read.
        training: bytes that a training on this device may yet take; None when none computes.
            Asked about once a second while a base is loaded.
    """

    def __init__(
        self, settings: Settings, training: Callable[[], int | None] = no_training
    ) -> None:
        self._turn_seconds = settings.turn_seconds
        self._graph = settings.chat_graph
        self._training = training
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []
        self._serving: Serving | None = None
        self._releasing = False
        self._polled = 0.0
        self._thread: threading.Thread | None = None

    # What people call

    def _load(self, request: Request, progress: Tell | None) -> list[str]:
        self._submit(request)
        for _ in self._news(request):
            while request.notes and progress is not None:
                progress(request.notes.pop(0))
        return request.notices

    def _answer(self, request: Request) -> Iterator[Pair]:
        self._submit(request)
        return self._news(request)

    def release(self) -> None:
        with self._changed:
            self._releasing = self._serving is not None and self._alive()
            self._changed.notify_all()
            while self._releasing and self._alive():
                self._changed.wait(ALIVE_SECONDS)

    def fits(self, base: ModelConfig | str | None = None, token: str | None = None) -> Room:
        return self._room(self._named(base, None)[0], token)

    @property
    def loaded(self) -> ModelConfig | None:
        """The base in memory."""
        serving = self._serving
        return None if serving is None else serving.base

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    # Requests, as their owners see them

    def _submit(self, request: Request) -> None:
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise BusyError(
                    f"{MOST_WAITING} questions are waiting for an answer already. Ask again in a "
                    "moment."
                )
            self._waiting.insert(self._place(request), request)
            if not self._alive():  # the first request; or a forked process, which has no thread
                self._thread = threading.Thread(target=self._serve, name="chat", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _place(self, request: Request) -> int:
        """Where a request waits: before those that go on after it, else last.

        These are answers that have said more, and longer questions; but nobody is overtaken for
        longer than `LONGEST_PAUSE`.
        """
        lately = time.monotonic() - LONGEST_PAUSE * self._turn_seconds
        for place, one in enumerate(self._waiting):
            longer = one.base == request.base and _is_longer(one, request)
            if one.waiting_since > lately and (one.said > request.said or longer):
                return place
        return len(self._waiting)

    def _news(self, request: Request) -> Iterator[Pair]:
        """What is new about a request, whenever something is."""
        seen, finished = 0, False
        try:
            while not finished:
                with self._changed:
                    while request.changes == seen:
                        if not self._changed.wait(ALIVE_SECONDS) and not self._alive():
                            raise ModelError("The chat ended in the middle. Ask again.")
                    seen, finished, pair = request.changes, request.finished, request.pair()
                if request.error is not None:
                    raise request.error
                yield pair
        finally:
            request.cancelled = True

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    # The model's thread: nothing below is called by another, but for `_room`

    def _serve(self) -> None:
        """While the process lives: a fault that belongs to no one request is told to them all."""
        without_advice()
        while True:
            try:
                self._turn()
            except BaseException as problem:  # noqa: BLE001 raised again where answers are read
                self._fail_all(problem)

    def _turn(self) -> None:
        """Let requests in, give a pass to those that are active."""
        self._wait_for_work()
        if self._releasing:
            self._free()
        self._end_stopped()
        while (request := self._next()) is not None:
            self._start(request)
        if self._active:
            self._pass()

    def _fail_all(self, problem: BaseException) -> None:
        """End every request with an error and let the base go, in whatever state it is."""
        error = _explained(problem)
        with self._changed:
            for request in [*self._active, *self._waiting]:
                request.fail(error)
            self._active.clear()
            self._waiting.clear()
            self._serving, self._releasing = None, False
            self._changed.notify_all()
        _collect()

    def _wait_for_work(self) -> None:
        while True:
            self._make_way()
            with self._changed:
                if self._waiting or self._active or self._releasing:
                    return
                # A training may come to need the memory of a base that nobody uses.
                self._changed.wait(POLL_SECONDS if self._serving is not None else None)

    def _make_way(self) -> None:
        """Release the base when a training needs its memory."""
        if self._serving is None or time.monotonic() - self._polled < POLL_SECONDS:
            return
        self._polled = time.monotonic()
        need = self._training()
        if need is not None and _free_memory(self._serving.base) < need:
            self._releasing = True

    def _free(self) -> None:
        """Drop the base and everything that belongs to it; answers under way wait for it again."""
        with self._changed:
            self._waiting.extendleft(reversed(self._active))
            self._active.clear()
            for request in self._waiting:
                request.detach()
            self._serving = None
            _collect()
            self._releasing = False
            self._changed.notify_all()

    def _end_stopped(self) -> None:
        """End what its reader has left, or asked to stop."""
        for request in [*self._active, *self._waiting]:
            try:
                if request.stopping():
                    self._finish(request)
            except BaseException as error:  # noqa: BLE001 raised again where the answer is read
                self._finish(request, _explained(error))

    def _next(self) -> Request | None:
        """The head of the queue where it may start, else a short question that takes it no place.

        A head that waits for memory, or to load its base, is not passed by.
        """
        if not self._waiting:
            return None
        joining = self._waiting if len(self._active) >= MOST_ACTIVE else ()
        if short := next((one for one in joining if self._has_place(one)), None):
            return short
        return head if self._may_start(head := self._waiting[0]) else None

    def _has_place(self, request: Request) -> bool:
        """Whether it may join those that are answered, as they are."""
        serving = self._serving
        assert serving is not None
        # Long ones there would hold the places that short ones find at once.
        shorter = any(_is_longer(one, request) for one in self._active)
        most = MOST_ACTIVE + (NEWCOMERS if shorter and not request.columns else 0)
        if serving.base != request.base or len(self._active) >= most:
            return False
        paused = [one for one in self._waiting if one.columns and one is not request]
        promised = sum(one.promised for one in [*self._active, request, *paused])
        return serving.make_room(promised)

    def _may_start(self, head: Request) -> bool:
        """Whether there is room among the active; if not, one who had its turn makes room.

        That is the longest, and of these who has said most: what is short is soon over.
        """
        if not self._active or self._has_place(head):
            return True
        serving = self._serving
        assert serving is not None
        other_base = serving.base != head.base
        turn = max(self._turn_seconds, RELOAD_PATIENCE * serving.load_seconds * other_base)
        began = time.monotonic() - turn
        if had := [request for request in self._active if request.turn_began < began]:
            with self._changed:
                self._active.remove(one := max(had, key=lambda r: (r.promised, r.said)))
                self._waiting.insert(self._place(one), one)
        return False

    def _start(self, request: Request) -> None:
        """Take the head of the queue in: load what it names, begin or continue its answers."""
        error: BaseException | None = None
        try:
            serving = self._open(request)
            if request.serving is not serving:
                self._begin(request, serving)
        except BaseException as problem:  # noqa: BLE001 raised again where the answer is read
            error = _explained(problem)
        if error is not None and self._serving is None:
            _collect()  # what was loaded of a base that did not fit
        if error is not None or not request.open_columns:
            self._finish(request, error)
            return
        with self._changed:
            self._waiting.remove(request)
            self._active.append(request)
            request.turn_began = time.monotonic()

    def _open(self, request: Request) -> Serving:
        """The base that a request names, loaded if it is not."""
        with heavy_imports():
            from phi3lora.chat.serving import Serving
        if self._serving is not None and self._serving.base == request.base:
            return self._serving
        if self._serving is not None:
            self._free()
        room = self._room(request.base, request.token)
        if not room.fits:
            raise BusyError(room.message)
        self._serving = Serving.open(
            request.base,
            lambda text: self._say(request, text),
            request.token,
            graph=self._graph,
        )
        return self._serving

    def _begin(self, request: Request, serving: Serving) -> None:
        """The request's answers, or what was said of them before its base was released."""
        adapters: dict[Side, Adapter | None] = {}
        for side, folder in request.adapters.items():
            self._say(request, "loading the adapter")
            adapter = serving.adapter(folder)
            request.notices += adapter.notices
            adapters[side] = adapter.at(request.options.strength_of(side))
        request.notices += serving.notices
        for side, messages in request.conversations.items():
            used = adapters.get(side)
            if side in request.columns:
                request.columns[side].row.adapter = used
            else:
                request.columns[side] = serving.start(messages, used, request.options)
        request.serving = serving

    def _pass(self) -> None:
        """One pass over the weights, for everybody who is being answered."""
        serving = self._serving
        assert serving is not None
        try:
            columns = [c for request in self._active for c in request.open_columns]
            serving.step(columns, self._budget())
        except BaseException as problem:  # noqa: BLE001 raised again where the answers are read
            error = _explained(problem)
            for request in list(self._active):
                self._finish(request, error)
            self._free()
            return
        with self._changed:
            for request in self._active:
                request.changes += 1
            self._changed.notify_all()
        for request in [r for r in self._active if not r.open_columns]:
            self._finish(request)

    def _budget(self) -> int:
        """Tokens of prompts that a pass may read: a short answer does not wait for long prompts."""
        from phi3lora.chat.decoding import READ

        most = max(self._active, key=lambda request: request.promised)
        beside = any(_is_longer(most, request) for request in self._active)
        return READ_BESIDE if beside else READ

    def _finish(self, request: Request, error: BaseException | None = None) -> None:
        """Nothing more comes; what was read stays cached for the next turn."""
        with self._changed:
            try:
                if request.serving is not None and error is None:
                    for column in request.columns.values():
                        column.stream.finish()
                        request.serving.keep(column)
            except BaseException as problem:  # noqa: BLE001 raised again where the answer is read
                error = _explained(problem)
            for queue in (self._active, self._waiting):
                if request in queue:
                    queue.remove(request)
            request.finish(error)
            self._changed.notify_all()

    def _say(self, request: Request, text: str) -> None:
        with self._changed:
            request.note(text)
            self._changed.notify_all()

    def _room(self, base: ModelConfig, token: str | None) -> Room:
        from phi3lora.models.hardware import detect_hardware

        hardware = detect_hardware(base.device)
        need = 0 if self.loaded == base else _need(base, token)
        training = self._training()
        if need + (training or 0) <= hardware.memory_free:
            return Room(True, need, hardware.memory_free)
        memory = f"{words.size(need)} of memory, {words.size(hardware.memory_free)} are free"
        if training is None:
            message = f"Chat needs {memory}. End what else uses it, or choose a smaller base."
        else:
            message = (
                f"A training is computing and has the memory (chat needs {memory}). Compare comes "
                "back by itself when the run ends."
            )
        return Room(False, need, hardware.memory_free, message)


def _is_longer(one: Request, other: Request) -> bool:
    """Whether it makes another wait for much more than that one has to say."""
    return one.promised > LONGER * other.promised


def _free_memory(base: ModelConfig) -> int:
    from phi3lora.models.hardware import detect_hardware

    return detect_hardware(base.device).memory_free


def _need(base: ModelConfig, token: str | None) -> int:
    """Bytes of the weights, and a tenth more for caches and what computing takes."""
    from phi3lora.models.base import check_base, resolve_path
    from phi3lora.models.hardware import choose_dtype, detect_hardware

    hardware = detect_hardware(base.device)
    info = check_base(resolve_path(base.path, hardware), base.revision, token)
    dtype, _ = choose_dtype(base.dtype, hardware, info.parameters)
    each = BYTES[base.quantization] or (4 if dtype == "float32" else 2)
    return int(info.parameters * each * 1.1)


def _collect() -> None:
    """Give freed memory back to the system, and to other processes on the GPU."""
    gc.collect()
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
    except BaseException:  # after a fault of the GPU nothing is left to give back
        log.exception("The GPU's memory could not be given back")


def _explained(error: BaseException) -> Exception:
    """What a reader is told; what it held of the model is let go.

    Running out of memory is something to mend. What else goes wrong is raised as it is, unless
    nobody would catch it: a Rust library's panic, or an exit asked for in a callback.
    """
    if not isinstance(error, Phi3LoraError):
        # As text: a handler that keeps its records would keep the frames, and the model with them.
        log.error("A fault in the chat\n%s", "".join(traceback.format_exception(error)))
    _let_go(error)
    torch = sys.modules.get("torch")
    full = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    if isinstance(error, full):
        return ModelError(
            "The device's memory ran out in the middle of an answer. Ask again with a shorter "
            "conversation, or wait until other answers and trainings have ended."
        )
    if isinstance(error, Exception):
        return error
    return ModelError(
        f"The answer could not be made ({type(error).__name__}: {str(error)[:200]}). Ask again."
    )


def _let_go(error: BaseException) -> None:
    """Drop the tracebacks: their frames hold a model that was half loaded, or a pass's tensors."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            chain += [one.__cause__, one.__context__]
            one.__traceback__ = None
