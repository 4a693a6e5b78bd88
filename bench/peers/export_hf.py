"""Our network as transformers', around the same weights: for random weights, and for CTranslate2's converter."""

from typing import Any

import transformers
from torch import Tensor

from octavo.bench.peers.sources import stored_weights
from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.registry import family_of


def network(model: Model) -> Any:
    """The same network in transformers' classes; it shares the weights' memory where the layout is the same."""
    transformers.utils.logging.disable_progress_bar()
    weights = renamed(model)
    dtype = next(iter(weights.values())).dtype
    twin = transformers.AutoModelForCausalLM.from_config(configuration(model.config), dtype=dtype)
    missing, unexpected = twin.load_state_dict(weights, strict=False, assign=True)
    twin.tie_weights()
    if unexpected or [name for name in missing if not (name == "lm_head.weight" and model.config.tied_embeddings)]:
        raise ValueError(f"transformers names its weights otherwise: {[*missing, *unexpected][:3]}")
    return twin.eval()


def configuration(config: ModelConfig) -> Any:
    """transformers' configuration of the same network; no end token, since a benchmark ignores them."""
    family = family_of(config)
    if family.to_hf is None:
        raise ValueError(f"models of the family {family.name} are not exported to transformers")
    fields = family.to_hf(config)
    kind = transformers.AutoConfig.for_model(fields["model_type"])
    return type(kind)(**fields, bos_token_id=config.bos_id, eos_token_id=None)


def renamed(model: Model) -> dict[str, Tensor]:
    """Our weights under transformers' names and in its layout."""
    family, found = family_of(model.config), {}
    for name, module, tensor in stored_weights(model, family.hf_names, interleaved=False):
        if module in family.hf_transposed and name.endswith("weight"):
            tensor = tensor.T.contiguous()
        found[name if module == "lm_head" else family.hf_prefix + name] = tensor
    return found
