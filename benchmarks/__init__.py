"""What the package costs, and how it compares with the published code: ``python -m benchmarks.<name>``."""
