"""Silences what TorchRec makes torch say about TorchRec: nothing that its users or ours can act on."""

import logging
import warnings

for _words in ("broadcast_buffers", "reduce_scatter_tensor", "all_gather_into_tensor"):
    warnings.filterwarnings("ignore", message=f".*{_words}.*is deprecated", category=FutureWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
