"""Models on the Hugging Face Hub, `hf://ORG/NAME`: loaded from its cache, pushed with a card."""
