"""The architecture of each expert at its smallest, with random weights and a tiny tokenizer.

What is saved is what `from_pretrained` reads from a real checkpoint: configuration, weights, and a
processor of the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from muva.pretraining.grounder import new_grounder, new_processor, save

tf: Any = transformers
"""Its annotations know one kind of configuration where several are taken."""

WORDS = ["the", "head", "of", "person", "upper", "body", "legs"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def florence2(folder: Path) -> None:
    processor = new_processor()
    save(new_grounder(processor, seed=0), processor, folder)


def kosmos2(folder: Path) -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    # The processor uses the ids after <unk> as placeholders for the image.
    known = [*special, *(f"<image-{i}>" for i in range(70)), *(f"▁{word}" for word in WORDS)]
    processor = tf.Kosmos2Processor(
        tf.CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False),
        _word_tokenizer(known, special),
    )
    config = tf.Kosmos2Config(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "embed_dim": 32,
            "layers": 1,
            "ffn_dim": 32,
            "attention_heads": 2,
            "max_position_embeddings": 256,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        vision_config={**_small_vision(image_size=28), "patch_size": 14},
        latent_query_num=64,
    )
    _save(tf.Kosmos2ForConditionalGeneration, config, processor, folder)


def grounding_dino(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS])
    )
    tokenizer = tf.BertTokenizer(vocab=str(vocabulary))
    config = tf.GroundingDinoConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_indices": [2, 3, 4],
        },
        text_config=tf.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        ).to_dict(),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=10,
        max_text_len=64,
        encoder_n_points=2,
        decoder_n_points=2,
    )
    images = tf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    processor = tf.GroundingDinoProcessor(images, tokenizer)
    _save(tf.GroundingDinoForObjectDetection, config, processor, folder)


def owlv2(folder: Path) -> None:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    tokenizer = tf.CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        pad_token="<|endoftext|>",
        model_max_length=32,
    )
    config = tf.Owlv2Config(
        text_config={
            "vocab_size": len(tokens),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        vision_config={**_small_vision(image_size=64), "patch_size": 16},
        projection_dim=32,
    )
    processor = tf.Owlv2Processor(
        tf.Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer
    )
    _save(tf.Owlv2ForObjectDetection, config, processor, folder)


def qwen25_vl(folder: Path) -> None:
    tokenizer = _qwen_tokenizer()
    config = tf.Qwen2_5_VLConfig(
        text_config=_qwen_text(tokenizer),
        vision_config={
            **_qwen_vision(),
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        **_qwen_ids(),
    )
    images = tf.Qwen2VLImageProcessor(
        size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    )
    processor = tf.Qwen2_5_VLProcessor(
        images, tokenizer, tf.Qwen2VLVideoProcessor(), chat_template=CHAT
    )
    _save(tf.Qwen2_5_VLForConditionalGeneration, config, processor, folder)


def qwen3_vl(folder: Path) -> None:
    tokenizer = _qwen_tokenizer()
    config = tf.Qwen3VLConfig(
        text_config=_qwen_text(tokenizer, mrope_interleaved=True),
        vision_config={
            **_qwen_vision(),
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        **_qwen_ids(),
    )
    images = tf.Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 512 * 512}
    )
    processor = tf.Qwen3VLProcessor(
        images, tokenizer, tf.Qwen3VLVideoProcessor(), chat_template=CHAT
    )
    _save(tf.Qwen3VLForConditionalGeneration, config, processor, folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "florence-2": florence2,
    "kosmos-2": kosmos2,
    "grounding-dino": grounding_dino,
    "owlv2": owlv2,
    "qwen2.5-vl": qwen25_vl,
    "qwen3-vl": qwen3_vl,
}
"""Expert -> what writes a small checkpoint of it into a folder."""


def _save(kind: Any, config: Any, processor: Any, folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def _small_vision(*, image_size: int) -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": image_size,
    }


def _word_tokenizer(tokens: Sequence[str], special: Sequence[str]) -> Any:
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(special))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


def _qwen_tokenizer() -> Any:
    """Bytes, without merges."""
    tokens = [*QWEN_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(QWEN_TOKENS))
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=QWEN_TOKENS[0], eos_token=QWEN_TOKENS[2]
    )


def _qwen_text(tokenizer: Any, **rope: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 3, 3],
            "rope_theta": 1e4,
            **rope,
        },
    }


def _qwen_vision() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 32,
    }


def _qwen_ids() -> dict[str, int]:
    return {
        "image_token_id": QWEN_TOKENS.index("<|image_pad|>"),
        "video_token_id": QWEN_TOKENS.index("<|video_pad|>"),
        "vision_start_token_id": QWEN_TOKENS.index("<|vision_start|>"),
        "vision_end_token_id": QWEN_TOKENS.index("<|vision_end|>"),
    }
