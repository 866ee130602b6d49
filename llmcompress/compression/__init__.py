"""LoadedModel + Recipe -> compressed ``ov.Model`` -> a complete directory."""
