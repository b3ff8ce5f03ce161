"""What a model holds, in numbers and tables."""
