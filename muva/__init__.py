"""MUVA: domain-generalised person re-identification with multi-grained prompts."""
