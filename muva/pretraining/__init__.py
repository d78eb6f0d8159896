"""How the small models that are shipped are made."""
