"""The speechLLM: frozen Whisper encoder, speech adapter, foundation LLM with LoRA; training, checkpoints, generation. Neither Ray nor MLflow here."""
