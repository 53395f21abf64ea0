"""Models of other libraries by name: timm's architectures, and folders that transformers reads. Each library is an extra."""
