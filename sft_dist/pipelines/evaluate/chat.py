"""Run folder -> a conversation with its model, turn by turn, on the prompt ids that training saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.records import Example, Message
from sft_dist.core.runfolder import RunFolder
from sft_dist.evals.generate import answer_of, generate_ids, load_model, stops_of
from sft_dist.pipelines.evaluate.job import make_job
from sft_dist.render.renderer import Renderer

NEW, QUIT = "/new", "/quit"


class Talk:
    """One conversation.

    Args:
        model: From evals.generate.load_model.
        renderer: Of the run.
        max_new_tokens: Of an answer.
        system: First turn; None: what the template says.
    """

    def __init__(
        self, model: Any, renderer: Renderer, *, max_new_tokens: int, system: str | None = None
    ) -> None:
        self._model, self._renderer, self._limit = model, renderer, max_new_tokens
        self._head = (Message(role="system", content=system),) if system else ()
        self.turns: tuple[Message, ...] = ()

    def ask(self, text: str) -> str:
        """Return the answer to one more turn, thoughts included; the conversation goes on with it."""
        self.turns += (Message(role="user", content=text),)
        tokenizer, stops = self._renderer.tokenizer, stops_of(self._model, self._renderer)
        (ids,) = generate_ids(
            self._model,
            [self.prompt()],
            stop_ids=stops,
            pad_id=tokenizer.pad_id if tokenizer.pad_id is not None else stops[0],
            max_new_tokens=self._limit,
        )
        said = tokenizer.decode(ids[:-1] if ids and ids[-1] in stops else ids, skip_special_tokens=True)
        self.turns += (Message(role="assistant", content=answer_of(said)),)
        return said

    def prompt(self) -> list[int]:
        """Return the token ids that the next answer follows; the oldest questions go where the model's context is full.

        Raises:
            UserError: When the last question alone is too long.
        """
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        while True:
            example = Example(id="0" * 32, task="chat", source="chat", messages=(*self._head, *self.turns))
            ids = self._renderer.prompt(example)
            if len(ids) + self._limit <= context:
                return ids
            if len(self.turns) == 1:
                raise UserError(
                    f"the question has {len(ids):,} tokens and the answer may have {self._limit:,}, which is more than the model's context of "
                    f"{context:,}; ask a shorter one, or lower --max-new-tokens"
                )
            self.turns = self.turns[2:]


def open_talk(
    folder: RunFolder,
    *,
    model: str | None = None,
    max_new_tokens: int | None = None,
    system: str | None = None,
) -> Talk:
    """Load the export of a run, or another model under its template.

    Raises:
        UserError: When there is no model, or tokenizer or template changed since training.
    """
    import torch

    job = make_job(folder, model=model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(job.model, device=device, dtype=job.config.model.dtype)
    limit = max_new_tokens or job.config.eval.max_new_tokens
    return Talk(loaded, job.renderer(), max_new_tokens=limit, system=system)


def converse(talk: Talk, lines: Iterable[str], say: Callable[[str], None]) -> None:
    """Answer each line; `/new` forgets the conversation, `/quit` ends it."""
    for line in lines:
        text = line.strip()
        if text == QUIT:
            return
        if text == NEW:
            talk.turns = ()
        elif text:
            say(talk.ask(text))
