"""Proofs: every region in float64, then the whole model's wiring by onnxruntime."""
