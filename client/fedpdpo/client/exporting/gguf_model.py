"""A causal model as one GGUF file, for llama.cpp and what builds on it.

Shapes: H hidden size, V vocabulary, A heads, D width of a head.
"""

from pathlib import Path
from typing import Any, Literal

from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from torch import Tensor

from fedpdpo.client.exporting.gguf_tokenizer import add_tokenizer, unwritable

GgufType = Literal["f32", "f16", "q8_0"]

#: Families of transformers by the architecture of llama.cpp that computes what they do.
FAMILIES = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


def write_file(model: Any, tokenizer: Any, path: Path, kept: GgufType) -> None:
    """Write a float32 model on the CPU; `kept` is how its matrices are, vectors stay float32.

    Raises BadModel for a family or a kind of it that llama.cpp computes otherwise or that was not
    tried here, and for such a tokenizer.
    """
    config = model.config
    _refuse_other_kinds(config, [name for name, _ in model.named_parameters()])
    arch = FAMILIES[config.model_type]
    writer = GGUFWriter(path, MODEL_ARCH_NAMES[arch])
    try:
        _add_sizes(writer, config)
        add_tokenizer(writer, tokenizer, num_tokens=config.vocab_size)
        ggml_type, file_type = _TYPES[kept]
        writer.add_file_type(file_type)
        writer.add_quantization_version(GGML_QUANT_VERSION)
        names = get_tensor_name_map(arch, config.num_hidden_layers)
        for name, weight in model.named_parameters():
            to = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if to is None:
                raise unwritable(f"llama.cpp has no place for {name}")
            data = _as_llama_cpp(name, weight.detach(), config).numpy()
            whole = data.ndim > 1 and data.shape[-1] % GGML_QUANT_SIZES[ggml_type][0] == 0
            of = ggml_type if whole else GGMLQuantizationType.F32
            writer.add_tensor(to, quantize(data, of), raw_dtype=of)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _refuse_other_kinds(config: Any, names: list[str]) -> None:
    family = config.model_type
    if family not in FAMILIES:
        raise unwritable(f"the backbone is a {family}, not one of {', '.join(FAMILIES)}")
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        raise unwritable(f"the backbone's rotary positions are scaled ({rope})")
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise unwritable("the backbone attends to a window in some layers")
    if config.hidden_act != "silu":
        raise unwritable(f"the backbone's activation is {config.hidden_act}, not silu")
    if family != "qwen2" and any(name.endswith(".bias") for name in names):
        raise unwritable(f"the backbone is a {family} with biases")


def _add_sizes(writer: GGUFWriter, config: Any) -> None:
    writer.add_type("model")
    writer.add_name("personal model")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _as_llama_cpp(name: str, weight: Tensor, config: Any) -> Tensor:
    """A weight in llama.cpp's order of rows; shapes (A D, H) -> (A D, H).

    For llama it turns neighbouring rows of a query or key into each other, where transformers turns
    a row of the first half of a head and one of the second.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    of = heads.get(name.split(".")[-2])
    if config.model_type != "llama" or of is None:
        return weight
    halves = weight.view(of, 2, weight.shape[0] // of // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape)
