"""Models: reading, indexing, editing and writing. The only importer of onnx and its tools."""
