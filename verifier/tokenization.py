"""The reference's own tokenizer and chat template: messages to text and ids, text to ids, ids to text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from verifier.errors import ReferenceUnreadable, Unsupported
from verifier.spelling import Spelling

_request_time: ContextVar[datetime | None] = ContextVar("request_time", default=None)


class ChatTokenizer:
    """Tokenizer and chat template of one reference directory. Raises ReferenceUnreadable if there is none."""

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ReferenceUnreadable(f"{path} holds no tokenizer that can be loaded: {error}") from error
        self._end_token_ids = _generation_end_token_ids(Path(path))

    @classmethod
    def of(cls, tokenizer: Any, *, end_token_ids: Sequence[int] = ()) -> ChatTokenizer:
        """Around a transformers tokenizer that is loaded already."""
        made = cls.__new__(cls)
        made._tokenizer, made._end_token_ids = tokenizer, tuple(end_token_ids)
        return made

    def prompt_token_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids that a faithful server feeds its model for this conversation; `verifier.prompts` takes whole requests.

        Raises Unsupported with `prompt_not_renderable` or `prompt_not_text`.
        """
        from verifier.prompts import prompt_token_ids

        request = {"messages": messages, "tools": tools, "chat_template_kwargs": template_kwargs}
        return prompt_token_ids(request, self)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        at: datetime | None = None,
    ) -> str:
        """The chat template's text.

        Args:
            messages: as templates take them (see `verifier.prompts.template_messages`).
            tools, documents, add_generation_prompt, continue_final_message: as transformers' `apply_chat_template`.
            template_kwargs: further variables of the template.
            at: the time that the template prints; the clock's where not given.

        Raises:
            Unsupported: `prompt_not_renderable`, the template refuses.
        """
        try:
            with self._time_of_templates(at):
                text: str = self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) if tools else None,
                    documents=list(documents) if documents else None,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    tokenize=False,
                    **(template_kwargs or {}),
                )
        except Exception as error:  # templates are programs of the model's maker and raise anything
            raise Unsupported("prompt_not_renderable", str(error).split("\n")[0][:200]) from error
        return text

    @property
    def prints_date(self) -> bool:
        """Whether the chat template prints the date."""
        return "strftime_now" in self.template

    @property
    def template(self) -> str:
        """Source of the default chat template; empty where there is none."""
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return template or ""

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a prompt's text: special tokens in it are read as such; BOS and its like are added only where asked.

        Raises Unsupported("text_not_unicode").
        """
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        except (UnicodeEncodeError, TypeError) as error:
            raise Unsupported("text_not_unicode", "the text holds lone surrogates, which no token spells") from error
        return ids

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of the ids; special tokens appear in it only where asked."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def spelling(self) -> Spelling:
        """How single ids spell bytes. Raises Unsupported("tokenizer_not_spellable")."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise Unsupported("tokenizer_not_spellable", "the reference's tokenizer is not one of `tokenizers`")
        return Spelling(backend)

    def pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        """What each id spells alone: UTF-8, perhaps part of a character; nothing beyond the vocabulary."""
        try:
            spelling = self.spelling
        except Unsupported:
            return [self.decode([token], special=True).encode(errors="replace") for token in token_ids]
        return [spelling.spell([token]) for token in token_ids]

    @cached_property
    def marker_ids(self) -> Mapping[str, int]:
        """Ids of the added tokens by their content."""
        return {str(token): number for number, token in self._tokenizer.added_tokens_decoder.items()}

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, the tokenizer's own EOS first, then those of the generation config."""
        own = self._tokenizer.eos_token_id
        return tuple(dict.fromkeys([*([] if own is None else [own]), *self._end_token_ids]))

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a text, if the tokenizer has one."""
        found: int | None = self._tokenizer.bos_token_id
        return found

    def __len__(self) -> int:
        return len(self._tokenizer)

    @contextmanager
    def _time_of_templates(self, at: datetime | None) -> Iterator[None]:
        """Let the template's `strftime_now` print `at`; transformers reads the clock and takes no other."""
        if at is None or not self.prints_date:
            yield
            return
        from transformers.utils.chat_template_utils import _compile_jinja_template

        # cached by the template's text: this is the very object that apply_chat_template renders
        _compile_jinja_template(self.template).globals["strftime_now"] = _strftime_now
        token = _request_time.set(at)
        try:
            yield
        finally:
            _request_time.reset(token)


def _strftime_now(pattern: str) -> str:
    return (_request_time.get() or datetime.now()).strftime(pattern)


def _generation_end_token_ids(path: Path) -> tuple[int, ...]:
    """`eos_token_id` of the generation config, which may be a list."""
    try:
        found = json.loads((path / "generation_config.json").read_text()).get("eos_token_id")
    except (OSError, ValueError):
        return ()
    listed = found if isinstance(found, list) else [found]
    return tuple(token for token in listed if type(token) is int)
