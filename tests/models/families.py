"""Small random models of every family, as `transformers` makes them: what ours are compared with."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

SIZES = {
    "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
# The original length is below that of the test's texts, or the slowed waves would never be reached.
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# The caps are low, so that they act on scores and logits of a few units.
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 12}
FAMILIES = {
    "qwen2 tied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2 untied": lambda: Qwen2Config(**SIZES, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=32, tie_word_embeddings=True),
    "qwen3 biased": lambda: Qwen3Config(**SIZES, head_dim=16, attention_bias=True, tie_word_embeddings=False),
    "llama": lambda: LlamaConfig(**SIZES),
    "llama biased": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "llama3": lambda: LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=16, sliding_window=None),
    "mistral windows": lambda: MistralConfig(**SIZES, head_dim=16, sliding_window=12),
    "qwen2 windows": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=12, max_window_layers=1),
    "qwen3 experts": lambda: Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16, norm_topk_prob=True),
    "qwen3 raw scores": lambda: Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=16, norm_topk_prob=False),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gemma2": lambda: Gemma2Config(
        **SIZES, **GEMMA, attn_logit_softcapping=4.0, final_logit_softcapping=2.0, tie_word_embeddings=True
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, **GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    ),
}  # fmt: skip


def torch_model(name, seed=0):
    """A model with norms, biases and attention far from their flat defaults, which would hide a missing one."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]()).eval().float()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
            else:
                p.mul_(3.0)
    return model


def padded_batch(length=200, pads=37, vocabulary=512, seed=0):
    """Two texts, the first with `pads` left pads: tokens, mask, positions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, vocabulary, (2, length), generator=generator)
    mask = torch.ones_like(tokens)
    mask[0, :pads] = 0
    tokens[0, :pads] = 0
    return tokens, mask, (mask.cumsum(-1) - 1).clamp(0)
