"""What the speed claims are measured with; run from a checkout, not installed."""
