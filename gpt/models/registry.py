"""Which model families there are. A new one is a file in families/ and a word in `FAMILIES`, or `register`."""

from functools import lru_cache

from octavo.gpt.models.base import Model
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.families import (
    cohere,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    granite,
    llama,
    nemotron,
    olmo,
    opt,
    phi,
    qwen,
    stablelm,
    starcoder,
)
from octavo.gpt.models.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        gpt2.FAMILY,
        llama.FAMILY,
        qwen.FAMILY,
        granite.FAMILY,
        olmo.FAMILY,
        phi.PHI2_FAMILY,
        phi.PHI3_FAMILY,
        gemma.GEMMA1_FAMILY,
        gemma.GEMMA_FAMILY,
        nemotron.FAMILY,
        starcoder.BIGCODE_FAMILY,
        starcoder.STARCODER2_FAMILY,
        gpt_neox.FAMILY,
        stablelm.FAMILY,
        glm.GLM_FAMILY,
        glm.GLM4_FAMILY,
        cohere.FAMILY,
        opt.FAMILY,
    )
}

KNOWN_SHAPES: dict[str, ModelConfig] = {  # by name, for networks with random weights
    name: config for family in FAMILIES.values() for name, config in family.known_shapes.items()
}


def register(family: Family) -> None:
    """Add a family for this process; ValueError where its name is taken by another."""
    if FAMILIES.get(family.name, family) is not family:
        raise ValueError(f"a model family named {family.name!r} is registered already")
    FAMILIES[family.name] = family
    KNOWN_SHAPES.update(family.known_shapes)


def family_of(config: ModelConfig) -> Family:
    """The family that a configuration belongs to."""
    return FAMILIES[config.family]


def by_architecture(architecture: str) -> Family | None:
    """The family that claims an entry of config.json's `architectures`."""
    return next((family for family in FAMILIES.values() if architecture in family.architectures), None)


def by_model_type(model_type: str) -> Family | None:
    """The family that reads a `model_type` of config.json."""
    return next((family for family in FAMILIES.values() if model_type in family.hf_types), None)


def by_gguf_architecture(architecture: str) -> Family | None:
    """The family that reads a `general.architecture` of GGUF files."""
    return next((family for family in FAMILIES.values() if architecture in family.gguf_types), None)


@lru_cache(maxsize=64)
def empty_network(config: ModelConfig) -> Model:
    """The network of a configuration without memory: what it weighs, and what it calls, can be read from it."""
    return family_of(config).empty(config)
