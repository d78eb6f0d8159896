"""The verbs: each puts one step of the flow on Ray."""
