"""The numbers and tables that describe a model."""
