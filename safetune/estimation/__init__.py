"""Memory of a fine-tuning run before anything is downloaded."""
