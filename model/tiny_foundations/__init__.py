"""The tiny foundation family: one Hugging Face model folder per kind, and family.json; made by experiments/pretrain_tiny.py."""
