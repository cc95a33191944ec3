"""A language model of a few thousand numbers with a real byte-level tokenizer: as a GGUF file and as a folder."""

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from pdopt.models.checkpoints import export
from pdopt.models.config import DecoderConfig
from pdopt.models.decoder import Decoder, put
from pdopt.models.gguf import gguf_name
from pdopt.models.gguf_file import read_gguf
from pdopt.models.names import rules
from pdopt.models.tokenizers import from_gguf

SPECIAL = ["<|end|>", "<|start|>"]
MERGES = ["t h", "th e", "Ġ the", "1 9"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)
CONFIG = DecoderConfig(
    vocabulary=len(TOKENS), width=16, depth=1, heads=2, kv_heads=1, head_dim=8, hidden=32, norm_epsilon=1e-5,
    positions=128, bos=1, eos=(0,), pad=0,
)  # fmt: skip


def model():
    """Random weights, large enough for texts to differ; drawn by NumPy, which compiles nothing."""
    rng, params = np.random.default_rng(0), {}
    for path, shape in CONFIG.shapes.items():
        value = np.ones(shape) if path.endswith("norm") else rng.normal(0, 0.2, shape)
        put(params, path, value.astype(np.float32))
    return Decoder(params, CONFIG)


def write_gguf(path, *, pre="smollm", kind="gpt2", template=TEMPLATE, first=False):
    """The model with its tokenizer as a GGUF file, family llama."""
    decoder = model()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONFIG.positions)
    writer.add_embedding_length(CONFIG.width)
    writer.add_block_count(CONFIG.depth)
    writer.add_feed_forward_length(CONFIG.hidden)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_layer_norm_rms_eps(CONFIG.norm_epsilon)
    writer.add_rope_freq_base(CONFIG.rope.theta)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(first)
    if template:
        writer.add_chat_template(template)
    for ours, rule in rules(CONFIG).items():
        value = decoder.params
        for part in ours.split("/"):
            value = value[part]
        for i in range(CONFIG.depth) if ours.startswith("layers/") else [0]:
            layer = np.asarray(value[i] if ours.startswith("layers/") else value)
            stored = np.ascontiguousarray(rule.outward(layer))
            if ours.endswith(("attention/q", "attention/k")):
                rows, columns = stored.shape
                heads = rows // CONFIG.head_dim
                pairs = stored.reshape(heads, 2, CONFIG.head_dim // 2, columns).swapaxes(1, 2)
                stored = np.ascontiguousarray(pairs.reshape(rows, columns))
            writer.add_tensor(gguf_name(rule.name.format(i=i)), stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder, gguf_path):
    """The same as a Hugging Face folder, with the tokenizer of the GGUF file."""
    export(model(), folder)
    from_gguf(read_gguf(gguf_path)).save_pretrained(folder)
    return folder
