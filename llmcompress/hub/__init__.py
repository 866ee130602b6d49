"""The Hugging Face Hub: the only room that talks to it."""
