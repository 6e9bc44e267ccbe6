"""Which models share the embedding table with the head unless their config.json says otherwise."""

from __future__ import annotations

# A table, because transformers takes seconds to import; a test compares it with the defaults of the installed version.
_MODEL_TYPES = """
bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small bloom camembert cohere cohere2 cohere2_moe
cohere_compass_text cpmant ctrl data2vec-text electra ernie ernie4_5 ernie4_5_moe falcon falcon_mamba gemma gemma2 gemma3
gemma3_text gemma3n gemma3n_text gemma4 gemma4_assistant gemma4_text gemma4_unified gemma4_unified_assistant gemma4_unified_text
glmasr got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese granite_speech granite_speech_plus granite_swa jetmoe led lfm2
lfm2_moe longt5 m2m_100 mamba marian mbart megatron-bert minicpm3 modernbert-decoder mpt mt5 mvp nllb-moe openai-gpt opt pegasus
pegasus_x plbart prophetnet qwen3_asr recurrent_gemma roberta roberta-prelayernorm roc_bert roformer seamless_m4t seamless_m4t_v2
smollm3 starcoder2 switch_transformers t5 t5gemma t5gemma2 trocr umt5 vaultgemma voxtral_realtime whisper xglm xlm xlm-roberta
xlm-roberta-xl xlnet xmod youtu zamba zamba2 zaya
"""

TIED_BY_DEFAULT = frozenset(_MODEL_TYPES.split())
"""Values of `model_type`, of language models."""
