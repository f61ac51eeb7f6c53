"""The reference's own tokenizer: messages to prompt ids by its chat template, text to ids, ids to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from verifier.errors import ReferenceUnreadable, Unsupported


class ChatTokenizer:
    """Tokenizer and chat template of one reference directory. Raises ReferenceUnreadable if there is none."""

    def __init__(self, path: str | Path) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ReferenceUnreadable(f"{path} holds no tokenizer that can be loaded: {error}") from error

    def prompt_token_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids that a faithful server feeds its model for this conversation.

        Raises Unsupported("prompt_not_renderable") where the template refuses the messages.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [_plain(message) for message in messages],
                tools=list(tools) if tools else None,
                add_generation_prompt=True,
                tokenize=False,
                **(template_kwargs or {}),
            )
        except Exception as error:  # templates are programs of the model's maker and raise anything
            raise Unsupported("prompt_not_renderable", str(error).split("\n")[0][:200]) from error
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        """Ids of a text as the tokenizer would write it, without added special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of the ids; special tokens appear in it only where asked."""
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text

    @cached_property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, the tokenizer's own EOS first."""
        return (self._tokenizer.eos_token_id,) if self._tokenizer.eos_token_id is not None else ()

    def __len__(self) -> int:
        return len(self._tokenizer)


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is text: templates of text models do not take OpenAI's list of parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    if any(not isinstance(part, Mapping) or "text" not in part for part in content):
        raise Unsupported("prompt_not_text", "a message has content that is not text")
    return {**message, "content": "".join(str(part["text"]) for part in content)}
