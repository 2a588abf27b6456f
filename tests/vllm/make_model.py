"""Make a chat model of random weights, about a megabyte: `make_model.py DIRECTORY`. Nothing is downloaded.

Runs in vLLM's environment (torch, transformers, tokenizers); `make .venv-vllm/.model` calls it. The architecture is
Qwen2 with a head size of 64, one of those vLLM's attention on CPUs takes. The tokenizer is a byte-level BPE over
English and Chinese, so that a Chinese character is one token, or several with its bytes split over them.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

HIDDEN, HEADS, LAYERS = 128, 2, 2
CONTEXT, VOCABULARY = 8192, 2000
END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

WORDS = (
    "a an the one every this model engine proxy client request token stream answer question weather city river bridge "
    "morning evening quickly slowly loads reads writes waits counts sends receives and or but while because to from in "
    "of with without long short small large red green blue tell me please hello thanks what where when how why"
)
CHARACTERS = (
    "你好我们今天天气怎么样请问北京上海广州深圳成都武汉的是在有不了和人这中大来为个国说到时要就出会可也对生能而子那得于着下自"
    "之年过发后作里用道行所然家种事方多经么去法学如都同现当没动面起看定分还进此给接收发送模型推理缓存队列服务健康检查"
)
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif -%}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif -%}"
)


def sentences(chance: random.Random) -> Iterator[str]:
    """Yield something to learn the vocabulary from."""
    for _ in range(5000):
        yield " ".join(chance.choices(WORDS.split(), k=chance.randint(3, 15))) + chance.choice(".?!")
        yield "".join(chance.choices(CHARACTERS, k=chance.randint(3, 25))) + chance.choice("。？！")


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, TURN_BEGINS, TURN_ENDS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(sentences(random.Random(0)), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_ENDS,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_BEGINS],
        model_max_length=CONTEXT,
    )
    fast.chat_template = TEMPLATE
    return fast


def main() -> None:
    """Write model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    tokens = tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokens),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    ).to(torch.bfloat16)
    # Random weights have no opinion: at temperature 0 they would say one word for ever.
    model.generation_config.do_sample = True
    model.generation_config.temperature = 1.0
    model.save_pretrained(directory)
    tokens.save_pretrained(directory)
    print(f"{sum(weights.numel() for weights in model.parameters())} random weights in {directory}")


if __name__ == "__main__":
    main()
