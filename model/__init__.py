"""The speechLLM: frozen Whisper encoder, speech adapter, foundation LLM with LoRA; training, checkpoints and generation. Knows neither Ray nor MLflow."""
