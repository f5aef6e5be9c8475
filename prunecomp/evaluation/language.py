"""A model in memory as its users use it: it continues texts, and says how likely a continuation is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteriaList

from prunecomp.errors import CheckpointError

TOKENS_AT_ONCE = 4096
LOGITS_AT_ONCE = 2**26
WORTH_SHARING = 8
"""Tokens that texts must have in common at their beginning for it to be read once for all of them."""


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation."""

    log: float
    """Natural logarithm, summed over its tokens."""
    greedy: bool
    """Whether it is what the model would have written."""


class Language:
    """A causal language model of transformers, on the device where it is, with its tokenizer.

    ``ends`` are the tokens that end a text.
    """

    def __init__(self, model: Any, tokenizer: Any, ends: Sequence[int]) -> None:
        self.model, self.tokenizer, self.ends = model, tokenizer, list(ends)
        self._last_alone = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}

    def encode(self, text: str) -> list[int]:
        """A text to be continued: without the end that some tokenizers put behind every one."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        end = getattr(self.tokenizer, "eos_token_id", None)
        while len(ids) > 1 and ids[-1] == end:
            ids = ids[:-1]
        return ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both as they stand in one text: as lm-eval splits them, where the tokens of the context end."""
        before = self.encode(context)
        return before, self.encode(context + continuation)[len(before) :]

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def chat(self, message: str) -> list[int]:
        """A user's message in the model's own chat template, up to where the answer begins; as a question and an answer
        where the tokenizer has none. Raises :class:`CheckpointError` for a template that cannot be used."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return self.encode(f"Question: {message}\nAnswer:")
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
            )
        except Exception as error:  # what a template raises is up to whoever wrote it
            raise CheckpointError(f"the tokenizer's chat template cannot be used: {error}") from error
        return ids

    @torch.no_grad()
    def generate(self, prompts: Sequence[list[int]], most: int, until: str | None = None) -> list[list[int]]:
        """The likeliest next token, again and again, after each prompt: at most ``most``, up to an end of text, which
        is the last token then, or until the new text holds ``until``.

        By :meth:`transformers.GenerationMixin.generate` with its cache and none of the model's own settings. Prompts of
        one length run without padding, after what they have in common; others are padded on the left.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        shared, cache = (0, None) if until is None else self._beginning(prompts)
        for batch in self._batches(prompts, shared, most, shared > 0):
            for number, answer in zip(
                batch, self._continued([prompts[i] for i in batch], most, until, cache), strict=True
            ):
                answers[number] = answer
        return answers

    def _continued(self, prompts: list[list[int]], most: int, until: str | None, cache: Any) -> list[list[int]]:
        width, pad = max(map(len, prompts)), self.ends[0] if self.ends else 0
        tokens = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        settings = GenerationConfig(
            max_new_tokens=most, do_sample=False, eos_token_id=self.ends or None, pad_token_id=pad, use_cache=True
        )
        options: dict[str, Any] = {}
        if cache is not None:
            options["past_key_values"] = repeated(cache, len(prompts))
        if until is not None:
            options["stopping_criteria"] = StoppingCriteriaList(
                [lambda ids, *_, **__: self._holds(ids[:, width:], until)]
            )
        own, self.model.generation_config = self.model.generation_config, settings  # or its own fill in the gaps
        try:
            device = self.model.device
            made = self.model.generate(tokens.to(device), attention_mask=mask.to(device), **options)
        finally:
            self.model.generation_config = own
        return [self._up_to_the_end(answer) for answer in made[:, width:].tolist()]

    def _holds(self, answers: torch.Tensor, until: str) -> torch.Tensor:
        found = [until in self.decode(answer) for answer in answers.tolist()]
        return torch.tensor(found, device=answers.device)

    def _up_to_the_end(self, answer: list[int]) -> list[int]:
        ended = [place for place, token in enumerate(answer) if token in self.ends]
        return answer[: ended[0] + 1] if ended else answer

    @torch.no_grad()
    def likelihoods(
        self, contexts: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[Likelihood]]:
        """Of the continuations of each context. A context is run once for all of its continuations, and what all
        contexts begin with once for all of them; those of one length run together, without padding."""
        found: list[list[Likelihood]] = [[] for _ in contexts]
        shared, cache = self._beginning(contexts)
        longest = max(len(one) for some in continuations for one in some)
        most = max(map(len, continuations))
        for batch in self._batches(contexts, shared, longest * most, True):
            some = self._judged([contexts[i][shared:] for i in batch], [continuations[i] for i in batch], cache)
            for number, likelihoods in zip(batch, some, strict=True):
                found[number] = likelihoods
        return found

    def _judged(
        self, contexts: list[list[int]], continuations: list[Sequence[list[int]]], cache: Any
    ) -> list[list[Likelihood]]:
        rows = [(number, one) for number, some in enumerate(continuations) for one in some]
        device = self.model.device
        read = self.model(
            input_ids=torch.tensor(contexts, device=device), use_cache=True, **self._last_alone,
            **({} if cache is None else {"past_key_values": repeated(cache, len(contexts))}),
        )  # fmt: skip
        owners = torch.tensor([number for number, _ in rows], device=device)
        logits = read.logits[:, -1:][owners].float()  # [R, 1, V]
        padded = pad_sequence([torch.tensor(one) for _, one in rows], batch_first=True).to(device)  # [R, C]
        if padded.shape[1] > 1:
            read.past_key_values.batch_select_indices(owners)
            # What is padded on the right comes after all that counts.
            after = self.model(input_ids=padded[:, :-1], past_key_values=read.past_key_values, use_cache=True)
            logits = torch.cat([logits, after.logits.float()], dim=1)
        taken = logits.log_softmax(dim=2).gather(2, padded.unsqueeze(2)).squeeze(2).double()
        likeliest = logits.argmax(dim=2) == padded
        found: list[list[Likelihood]] = [[] for _ in contexts]
        for row, (number, one) in enumerate(rows):
            n = len(one)
            found[number].append(Likelihood(float(taken[row, :n].sum()), bool(likeliest[row, :n].all())))
        return found

    def _beginning(self, texts: Sequence[list[int]]) -> tuple[int, Any]:
        """How many tokens all texts begin with, and what the model has read of them; 0 and None where that is not worth
        while."""
        shared = common_prefix(texts)
        if len(texts) < 2 or shared < WORTH_SHARING:
            return 0, None
        ids = torch.tensor([texts[0][:shared]], device=self.model.device)
        return shared, self.model(input_ids=ids, use_cache=True, **self._last_alone).past_key_values

    def _batches(self, texts: Sequence[list[int]], shared: int, beyond: int, alike: bool) -> list[list[int]]:
        """Which texts run together, of one length where they must be ``alike``; ``beyond`` tokens of each will come."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        batches = []
        for length, group in groupby(order, key=lambda i: len(texts[i]) if alike else 0):
            some = list(group)
            each = (length or len(texts[some[-1]])) - shared + beyond
            size = max(1, min(TOKENS_AT_ONCE // each, LOGITS_AT_ONCE // (beyond * self.model.config.vocab_size)))
            batches += [some[i : i + size] for i in range(0, len(some), size)]
        return batches


def repeated(cache: Any, times: int) -> Any:
    """A cache of one text as that of several that begin with it."""
    many = copy.deepcopy(cache)
    many.batch_repeat_interleave(times)
    return many


def common_prefix(texts: Sequence[list[int]]) -> int:
    """Tokens that all begin with, and that are not all of any."""
    first, last = min(texts), max(texts)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(same, min(map(len, texts)) - 1)
