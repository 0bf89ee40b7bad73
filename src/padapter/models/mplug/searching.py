"""How captions and answers are searched for: by transformers, or as the published code does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from padapter.errors import UserError
from padapter.models.mplug.beam_search import official_beam_search
from padapter.models.mplug.text import MPlugTextDecoder

SEARCHES = ("transformers", "official")
#: What the official search takes, besides the model's own inputs.
OFFICIAL_OPTIONS = (
    "num_beams",
    "length_penalty",
    "min_new_tokens",
    "max_new_tokens",
    "use_cache",
    "return_dict_in_generate",
)


class SearchingModel(GenerationMixin):
    """What captioning and question answering have in common: the decoder, and how it is searched."""

    text_decoder: MPlugTextDecoder
    config: Any
    generation_config: Any
    #: least and most new tokens of the published evaluation
    official_lengths: tuple[int, int]

    def get_output_embeddings(self) -> nn.Module:
        """The linear layer that makes logits."""
        return self.text_decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace that layer."""
        self.text_decoder.set_output_embeddings(new_embeddings)

    def _search(
        self,
        search: str,
        prompt_ids: torch.Tensor | None,
        prompt_mask: torch.Tensor | None,
        states: torch.Tensor,
        states_mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> Any:
        """Let the decoder write; see ``generate`` of the models."""
        if search not in SEARCHES:
            raise UserError(f"search {search!r} is not one of {', '.join(SEARCHES)}.")
        text = self.config.text_config
        if prompt_ids is None:
            prompt_ids = torch.full((states.shape[0], 1), text.bos_token_id, device=states.device)
        if search == "official":
            return self._official(prompt_ids, prompt_mask, states, states_mask, options)
        # The decoder is what transformers searches; the settings are those saved with the whole model.
        self.text_decoder.generation_config = self.generation_config
        return self.text_decoder.generate(
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids) if prompt_mask is None else prompt_mask,
            encoder_hidden_states=states,
            encoder_attention_mask=states_mask,
            **options,
        )

    def _official(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None,
        states: torch.Tensor,
        states_mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> Any:
        unknown = sorted(set(options) - set(OFFICIAL_OPTIONS))
        if unknown:
            raise UserError(
                f'search="official" has no option {", ".join(unknown)}; it takes {", ".join(OFFICIAL_OPTIONS)}.'
            )
        text = self.config.text_config
        least, most = self.official_lengths
        wants_dict = options.pop("return_dict_in_generate", False)
        result = official_beam_search(
            self.text_decoder,
            states,
            states_mask,
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            end_id=text.eos_token_id,
            pad_id=text.pad_token_id,
            **{"min_new_tokens": least, "max_new_tokens": most, **options},
        )
        return result if wants_dict else result.sequences
