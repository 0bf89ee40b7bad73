"""``python -m padapter.models``: pre-train the built-in model."""

import torch

# Before the first operation of the process, because worker threads inherit it only then: without it the backward pass
# drowns in denormal numbers and a step takes four times as long on the CPU.
torch.set_flush_denormal(True)

from padapter.models.pretrain import main  # noqa: E402

main()
