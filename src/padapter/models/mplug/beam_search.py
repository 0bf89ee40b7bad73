"""The beam search of the published mPLUG code, which is not that of transformers.

Scores are normalised by ((5 + length) / 6)^alpha, a search ends as soon as its *best* beam is finished, and other
finished beams go on being extended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import EncoderDecoderCache

from padapter.errors import UserError

_FORBIDDEN = -1e20  # what the end token's log-probability becomes while a text is too short


@dataclass
class BeamSearchResult:
    """What a search found.

    Attributes:
        sequences: (B, L), the best hypothesis of each row from the start token on, with the end token if it was
            reached; padded on the right.
        scores: (B,), their scores.
        hypotheses: per row all stored (score, ids), best first; of equal ones the one that was stored first.
    """

    sequences: torch.Tensor
    scores: torch.Tensor
    hypotheses: list[list[tuple[float, list[int]]]]


@torch.no_grad()
def official_beam_search(
    decoder: Any,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor | None = None,
    *,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor | None = None,
    end_id: int,
    pad_id: int,
    num_beams: int = 5,
    length_penalty: float = 0.6,
    min_new_tokens: int = 1,
    max_new_tokens: int = 10,
    use_cache: bool = True,
    past_key_values: EncoderDecoderCache | None = None,
) -> BeamSearchResult:
    """Search as the published code does.

    At step s = 0, 1, ... a beam's cumulative log-probability is divided by ((5 + s + 1) / 6)^alpha; of all beams and
    tokens the K best are kept. A beam is finished if its new token is the end token, at the last step in any case. If
    the best beam is finished, all K are stored as hypotheses and the row is done; otherwise those that are finished
    are stored, and extended like the others. The answer is the hypothesis with the highest score.

    Args:
        decoder: `MPlugTextDecoder`, in evaluation mode.
        encoder_hidden_states: (B, N, d), what it attends to.
        encoder_attention_mask: (B, N), 1 where it may; None: everywhere.
        prompt_ids: (B, P), what the texts begin with, the start token first.
        prompt_mask: (B, P), 0 for padding, which must be on the left; None: no padding.
        end_id: the end token.
        pad_id: what fills short sequences of the result up.
        num_beams: K.
        length_penalty: alpha.
        min_new_tokens: new tokens, end token included, before which there is no end: it is forbidden at steps
            s < min_new_tokens.
        max_new_tokens: most new tokens.
        use_cache: whether keys and values are kept between steps; the result is the same.
        past_key_values: a cache that holds keys and values of what is attended to, (B * K, H, N, dh), the K copies of a
            row one after the other, and no text; it is used up. None: they are computed.

    Returns:
        The best hypotheses and all others.

    Raises:
        UserError: for numbers of beams or tokens below 1.
    """
    if num_beams < 1 or max_new_tokens < 1:
        raise UserError(f"num_beams ({num_beams}) and max_new_tokens ({max_new_tokens}) must be 1 or more.")
    read, prompt = (encoder_hidden_states, encoder_attention_mask), (prompt_ids, prompt_mask)
    beams = _Beams(decoder, read, prompt, num_beams, use_cache, past_key_values)
    found: list[list[tuple[float, list[int]]]] = [[] for _ in range(prompt_ids.shape[0])]
    for step in range(max_new_tokens):
        log_probs = beams.log_probs()  # (rows, K, V)
        if step < min_new_tokens:
            log_probs[..., end_id] = _FORBIDDEN
        norm = ((5 + step + 1) / 6) ** length_penalty
        scores, chosen = ((beams.cumulative[..., None] + log_probs) / norm).flatten(1).topk(num_beams)  # (rows, K)
        tokens = chosen % log_probs.shape[-1]
        beams.extend(chosen // log_probs.shape[-1], tokens, scores * norm)
        finished = tokens.eq(end_id) if step + 1 < max_new_tokens else torch.ones_like(tokens, dtype=torch.bool)
        done = finished[:, 0]  # topk puts the best first
        for row, beam in (finished | done[:, None]).nonzero().tolist():
            found[beams.rows[row]].append((float(scores[row, beam]), beams.sequence(row, beam)))
        beams.keep((~done).nonzero()[:, 0])
        if not beams.rows:
            break
    for hypotheses in found:
        hypotheses.sort(key=lambda hypothesis: -hypothesis[0])  # stable: of equal ones the first stays first
    best = [hypotheses[0] for hypotheses in found]
    longest = max(len(ids) for _, ids in best)
    padded = [ids + [pad_id] * (longest - len(ids)) for _, ids in best]
    return BeamSearchResult(
        sequences=torch.tensor(padded, device=prompt_ids.device),
        scores=torch.tensor([score for score, _ in best], dtype=torch.float64, device=prompt_ids.device),
        hypotheses=found,
    )


class _Beams:
    """The beams of the rows whose search is not done.

    Attributes:
        rows: which row of the batch each of them is.
        cumulative: (rows, K), log-probabilities so far.
    """

    def __init__(
        self,
        decoder: Any,
        read: tuple[torch.Tensor, torch.Tensor | None],
        prompt: tuple[torch.Tensor, torch.Tensor | None],
        num_beams: int,
        use_cache: bool,
        cache: EncoderDecoderCache | None,
    ) -> None:
        (states, states_mask), (prompt_ids, prompt_mask) = read, prompt
        self.decoder, self.use_cache, self.width = decoder, use_cache, num_beams
        self.rows = list(range(prompt_ids.shape[0]))
        self.states = states.repeat_interleave(num_beams, 0)  # (rows * K, N, d)
        self.states_mask = None if states_mask is None else states_mask.repeat_interleave(num_beams, 0)
        self.ids = prompt_ids.repeat_interleave(num_beams, 0)  # (rows * K, length)
        mask = torch.ones_like(prompt_ids) if prompt_mask is None else prompt_mask
        self.mask = mask.repeat_interleave(num_beams, 0)
        self.cache: Any = cache if use_cache else None
        self.seen = 0  # tokens whose keys and values are in the cache
        dtype = torch.promote_types(states.dtype, torch.float32)
        self.cumulative = torch.full((len(self.rows), num_beams), float("-inf"), dtype=dtype, device=states.device)
        self.cumulative[:, 0] = 0  # at the start all beams are equal: one of them counts

    def log_probs(self) -> torch.Tensor:
        """(rows, K, V), of the next token."""
        outputs = self.decoder(
            input_ids=self.ids[:, self.seen :],
            attention_mask=self.mask,
            encoder_hidden_states=self.states,
            encoder_attention_mask=self.states_mask,
            past_key_values=self.cache,
            use_cache=self.use_cache,
            logits_to_keep=1,
        )
        if self.use_cache:
            self.cache, self.seen = outputs.past_key_values, self.ids.shape[1]
        log_probs = outputs.logits[:, -1].to(self.cumulative.dtype).log_softmax(-1)
        return log_probs.unflatten(0, (-1, self.width))

    def extend(self, parents: torch.Tensor, tokens: torch.Tensor, cumulative: torch.Tensor) -> None:
        """Put tokens (rows, K) behind beams ``parents`` (rows, K)."""
        first = torch.arange(len(self.rows), device=parents.device)[:, None] * self.width
        beams = (first + parents).flatten()
        # Beams stay within their row: what the row attends to, the larger part by far, is the same for all of them.
        self.ids = torch.cat([self.ids[beams], tokens.reshape(-1, 1)], dim=1)
        self.mask = torch.cat([self.mask[beams], torch.ones_like(self.mask[:, :1])], dim=1)
        if self.cache is not None:
            self.cache.self_attention_cache.batch_select_indices(beams)
        self.cumulative = cumulative

    def sequence(self, row: int, beam: int) -> list[int]:
        """The ids of a beam, from the start token on."""
        index = row * self.width + beam
        return [int(token) for token, kept in zip(self.ids[index], self.mask[index], strict=True) if kept]

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows."""
        if len(rows) == len(self.rows):
            return
        beams = (rows[:, None] * self.width + torch.arange(self.width, device=rows.device)).flatten()
        self.ids, self.mask, self.states = self.ids[beams], self.mask[beams], self.states[beams]
        self.states_mask = None if self.states_mask is None else self.states_mask[beams]
        if self.cache is not None:
            self.cache.batch_select_indices(beams)
        self.rows = [self.rows[row] for row in rows.tolist()]
        self.cumulative = self.cumulative[rows]
