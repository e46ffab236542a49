"""A language model that is asked many things at once; every answer is kept, and nothing is paid for twice."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cwdpo.chat.answer_cache import TextCache
from cwdpo.chat.client import ChatClient, ServiceError
from cwdpo.chat.requests import Conversation, Reply, Request
from cwdpo.recipe.endpoint_sections import EndpointSection

__all__ = ["LanguageModel"]

T = TypeVar("T")
S = TypeVar("S", bound=EndpointSection)


@dataclass
class _Result(Generic[T]):
    value: T


class LanguageModel(Generic[S]):
    """Conversations with a model behind an endpoint: cached, budgeted, many at once.

    Every answer is appended to a file as it comes, under the content of its request: what was answered is never asked
    again, except what was in flight when the process was killed.

    Args:
        settings: Endpoint, limits, prices; kept as `settings`.
        path: JSON-lines file of the answers.
        note: Told how much is about to be asked, and its price.
        progress: Called with conversations done and their number.
    """

    def __init__(
        self,
        settings: S,
        path: Path,
        *,
        note: Callable[[str], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.settings, self._note, self._progress = settings, note, progress
        self._cache, self.spent = TextCache(path), 0.0
        self._dearest, self._reserved = 0.0, list[float]()
        for kept in self._cache.values():
            if "received" in kept:  # an answer, in today's format
                self._count(Reply(**kept))

    def ask(self, label: str, conversations: Sequence[Conversation[T]]) -> list[T]:
        """Hold conversations to their end and return their results.

        Args:
            label: What a note calls them.
            conversations: Each one depends on its replies alone.

        Raises:
            ServiceError: The endpoint cannot be used, or the cap is reached; what was answered is kept.
        """
        results: dict[int, T] = {}
        waiting: list[tuple[int, Conversation[T], Request]] = []
        for i, conversation in enumerate(conversations):
            step = self._replay(conversation)
            if isinstance(step, _Result):
                results[i] = step.value
            else:
                waiting.append((i, conversation, step))
        if waiting:
            self._announce(label, [request for _, _, request in waiting])
            _run(self._hold(waiting, results, len(conversations)))
        return [results[i] for i in range(len(conversations))]

    def _replay(self, conversation: Conversation[T]) -> Request | _Result[T]:
        """Go as far as kept answers lead: to the first new request, or to the end."""
        try:
            request = next(conversation)
            while request.key in self._cache:
                request = conversation.send(Reply(**self._cache[request.key]))
            return request
        except StopIteration as end:
            return _Result(end.value)

    def _announce(self, label: str, requests: Sequence[Request]) -> None:
        """Say what is about to be asked and what it will cost; stop where that is too much."""
        s, sent, received = self.settings, sum(r.tokens for r in requests), sum(r.expected for r in requests)
        cost = self._cost(sent, received)
        if self._note is not None:
            price = f", about {cost:.4g} at the prices given" if cost else ""
            spent = f" ({self.spent:.4g} spent before)" if self.spent else ""
            asked = f"{len(requests)} requests to {s.model} at {', '.join(s.urls)}"
            self._note(f"{label}: {asked}, about {sent + received:,} tokens{price}{spent}")
        if s.max_cost is not None and self.spent + cost > s.max_cost:
            raise ServiceError(
                f"{len(requests)} requests cost about {cost:.4g} ({self.spent:.4g} is spent), more than "
                f"{s.place}.max_cost = {s.max_cost:g}; raise it or ask for less"
            )

    def _cost(self, sent: float, received: float) -> float:
        return (sent * self.settings.price_input + received * self.settings.price_output) / 1e6

    def _count(self, reply: Reply) -> None:
        cost = self._cost(reply.sent, reply.received)
        self.spent, self._dearest = self.spent + cost, max(self._dearest, cost)

    async def _hold(
        self, waiting: Sequence[tuple[int, Conversation[T], Request]], results: dict[int, T], total: int
    ) -> None:
        queue, freed = iter(waiting), asyncio.Event()
        asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

        async def answer(request: Request) -> Reply:
            async with asking[request.key]:  # conversations with the same content wait for one answer
                if request.key not in self._cache:
                    async with self._within_cap(request, freed):
                        body = await asyncio.to_thread(request.body) if request.images else request.body()
                        reply = await client.ask(body)
                        self._cache.add({request.key: asdict(reply)})
                        self._count(reply)
            return Reply(**self._cache[request.key])

        async def work() -> None:
            for i, conversation, request in queue:
                try:
                    while True:
                        request = conversation.send(await answer(request))
                except StopIteration as end:
                    results[i] = end.value
                if self._progress is not None:
                    self._progress(len(results), total)
                if client.stopped:
                    return

        async with ChatClient(self.settings) as client:
            workers = [asyncio.create_task(work()) for _ in range(min(self.settings.concurrency, len(waiting)))]
            done: set[asyncio.Task[None]] = set()
            try:
                done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                client.stop()
                await asyncio.gather(*workers, return_exceptions=True)  # answers in flight still arrive and are kept
            for worker in done:
                worker.result()

    @asynccontextmanager
    async def _within_cap(self, request: Request, freed: asyncio.Event) -> AsyncGenerator[None]:
        """Reserve the most that a request can cost; wait while the cap is taken up by others in flight.

        The price of the dearest answer so far is reserved if that is more: a server may count more tokens than guessed.

        Raises:
            ServiceError: The cap is reached.
        """
        cap = self.settings.max_cost
        while True:
            amount = max(self._cost(request.tokens, request.most), self._dearest)
            if cap is None or self.spent + sum(self._reserved) + amount <= cap:
                break
            if not self._reserved:
                raise ServiceError(
                    f"{self.settings.place}.max_cost = {cap:g} is reached ({self.spent:.4g} spent); what was answered "
                    "is kept: raise it and run the command again to resume"
                )
            freed.clear()
            await freed.wait()
        self._reserved.append(amount)
        try:
            yield
        finally:
            self._reserved.remove(amount)
            freed.set()


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
    else:  # a notebook has a loop of its own
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, work).result()
